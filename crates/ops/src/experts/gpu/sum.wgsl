// Each row is the sum, in order, of `sharers` rows of `width` values.
struct Params { count: u32, width: u32, sharers: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i >= p.count { return; }
    var at = i / p.width * p.sharers * p.width + i % p.width;
    var sum = 0.0;
    for (var k = 0u; k < p.sharers; k++) {
        sum += x[at];
        at += p.width;
    }
    y[i] = sum;
}
