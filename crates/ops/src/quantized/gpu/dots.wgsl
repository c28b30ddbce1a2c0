// A few rows of `x` against the rows of a quantized matrix, whose words are read once, in storage order: LANES
// invocations share the sums of four outputs, and each takes eight codes of each at a time. With two HALVES the rows are
// gates and, as many, what they open: outputs are `silu(gate) · up`.
struct Params { rows: u32, outputs: u32, width: u32, first: u32, stride: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<X4>;
const SETS: u32 = 256u / LANES;
var<workgroup> shares: array<vec4<f32>, 256>;

fn sum(x: vec4<f32>) -> f32 { return (x.x + x.y) + (x.z + x.w); }

@compute @workgroup_size(256)
fn dots(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let own = lane % LANES;
    let n = (group_index(group, groups) * SETS + lane / LANES) * 4u;
    var sums: array<vec4<f32>, FEW * HALVES>;
    for (var r = 0u; r < FEW * HALVES; r++) { sums[r] = vec4<f32>(0.0); }
    if n < p.outputs {
        // of outputs past the end the last is computed again
        let line = min(vec4<u32>(n) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.outputs - 1u)) * p.width;
        for (var k = own; k < p.width; k += LANES) {
            for (var h = 0u; h < HALVES; h++) {
                let at = line + k + h * p.outputs * p.width;
                let a = eight(at.x);
                let b = eight(at.y);
                let c = eight(at.z);
                let d = eight(at.w);
                let g = at / (GROUP / 8u);
                let factor = vec4<f32>(scale(g.x), scale(g.y), scale(g.z), scale(g.w));
                let offset = vec4<f32>(bias(g.x), bias(g.y), bias(g.z), bias(g.w));
                for (var r = 0u; r < FEW; r++) {
                    let i = (min(r, p.rows - 1u) * p.width + k) * 2u;
                    let u = widen_X(x[i]);
                    let v = widen_X(x[i + 1u]);
                    let products = vec4<f32>(
                        dot(a.x, u) + dot(a.y, v), dot(b.x, u) + dot(b.y, v),
                        dot(c.x, u) + dot(c.y, v), dot(d.x, u) + dot(d.y, v)
                    );
                    sums[h * FEW + r] += factor * products;
                    if BIASES != 5u { sums[h * FEW + r] += offset * (sum(u) + sum(v)); }
                }
            }
        }
    }
    for (var r = 0u; r < FEW; r++) {
        var gate = vec4<f32>(1.0);
        for (var h = 0u; h < HALVES; h++) {
            workgroupBarrier();
            shares[lane] = sums[h * FEW + r];
            for (var part = LANES / 4u; part > 0u; part /= 4u) {
                workgroupBarrier();
                if own < part {
                    let other = lane + part;
                    shares[lane] = (shares[lane] + shares[other]) + (shares[other + part] + shares[other + 2u * part]);
                }
            }
            if h + 1u < HALVES { gate = silu4(shares[lane]); }
        }
        if own == 0u && r < p.rows { put(r * p.stride + p.first + n, gate * shares[lane], n); }
    }
}
