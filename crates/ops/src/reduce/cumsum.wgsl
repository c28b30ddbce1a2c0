// One workgroup per row, block after block of four elements for each invocation; from the row's end where BACK is 1.
struct Params { rows: u32, width: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
var<workgroup> before: array<f32, WG>;

// The same value, unknown to the driver's compiler: some simplify a - ((b + a) - b) to 0. A width has fewer than 31 bits.
fn opaque(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) | (p.width >> 31u));
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group_index(group, groups);
    if row >= p.rows { return; }
    let base = row * p.width;
    // what was summed so far, and what its last addition lost
    var carry = 0.0;
    var lost = 0.0;
    for (var first = 0u; first < p.width; first += 4u * WG) {
        var sums: array<f32, 4>;
        var sum = 0.0;
        for (var k = 0u; k < 4u; k++) {
            let i = first + 4u * lane + k;
            if i < p.width { sum += x[base + select(i, p.width - 1u - i, BACK == 1u)]; }
            sums[k] = sum;
        }
        // sums over all lanes up to each, in doubling strides
        workgroupBarrier();
        before[lane] = sum;
        for (var stride = 1u; stride < WG; stride *= 2u) {
            workgroupBarrier();
            var other = 0.0;
            if lane >= stride { other = before[lane - stride]; }
            workgroupBarrier();
            before[lane] += other;
        }
        workgroupBarrier();
        var own = 0.0;
        if lane > 0u { own = before[lane - 1u]; }
        for (var k = 0u; k < 4u; k++) {
            let i = first + 4u * lane + k;
            if i < p.width { y[base + select(i, p.width - 1u - i, BACK == 1u)] = carry + (own + sums[k]); }
        }
        let add = before[WG - 1u] + lost;
        let next = opaque(carry + add);
        lost = add - (next - carry);
        carry = next;
    }
}
