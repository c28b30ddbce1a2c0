struct Params { quads: u32, most: f32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> x: array<X4>;
@group(0) @binding(1) var<storage, read> norm: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i < p.quads && norm[0] > p.most {
        x[i] = narrow_X(widen_X(x[i]) * (p.most / norm[0]));
    }
}
