// A saved gradient times the gradient of the loss.
struct Params { quads: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> by: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> rounded: array<X4>;

@compute @workgroup_size(256)
fn in_place(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i < p.quads { y[i] *= by[0]; }
}

@compute @workgroup_size(256)
fn narrowed(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i < p.quads { rounded[i] = narrow_X(y[i] * by[0]); }
}
