struct Params { quads: u32, most: f32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> x: array<X4>;
@group(0) @binding(1) var<storage, read> norm: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    // by its bits, which no driver assumes to be no NaN
    let wrong = (bitcast<u32>(norm[0]) & 0x7fffffffu) > 0x7f800000u;
    if i < p.quads && (wrong || norm[0] > p.most) {
        x[i] = narrow_X(widen_X(x[i]) * select(p.most / norm[0], norm[0], wrong));
    }
}
