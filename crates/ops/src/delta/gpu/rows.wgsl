// Rows of floats of a token's head.
struct Params { rows: u32, width: u32, v_heads: u32, share: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read> y: array<f32>;
@group(0) @binding(2) var<storage, read> factors: array<f32>;
@group(0) @binding(3) var<storage, read_write> dots: array<f32>;

var<workgroup> partial: array<f32, 256>;

// dots = x . y of each row; then x is multiplied with its factor SCALE (4 for none). y may have fewer heads.
@compute @workgroup_size(256)
fn dot_and_scale(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group_index(group, groups) * 32u + lane / 8u;
    var sum = 0.0;
    if row < p.rows {
        let other = row / p.v_heads * (p.v_heads / p.share) + row % p.v_heads / p.share;
        var factor = 1.0;
        if SCALE < 4u { factor = factors[row * 4u + SCALE]; }
        for (var d = lane % 8u; d < p.width; d += 8u) {
            let each = x[row * p.width + d];
            sum += each * y[other * p.width + d];
            if SCALE < 4u { x[row * p.width + d] = factor * each; }
        }
    }
    partial[lane] = sum;
    workgroupBarrier();
    if lane % 8u == 0u && row < p.rows {
        var total = sum;
        for (var i = 1u; i < 8u; i++) { total += partial[lane + i]; }
        dots[row] = total;
    }
}

// dots (a key head's rows) = the sum over the value heads that read it
@compute @workgroup_size(256)
fn sum_over_v_heads(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i >= p.rows * p.width { return; }
    let heads = p.v_heads / p.share;
    let row = i / p.width;
    let source = (row / heads * p.v_heads + row % heads * p.share) * p.width + i % p.width;
    var sum = 0.0;
    for (var r = 0u; r < p.share; r++) { sum += y[source + r * p.width]; }
    dots[i] = sum;
}

@group(0) @binding(4) var<storage, read> values: array<f32>;

// of each token and head: x = d beta, dots = dg, from the values' and the keys' (y) shares
@compute @workgroup_size(256)
fn write_gates(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i >= p.rows { return; }
    x[i] = values[i] + factors[i * 4u] * y[i];
    dots[i] = factors[i * 4u + 3u] * y[i];
}
