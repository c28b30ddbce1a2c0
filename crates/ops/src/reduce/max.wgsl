// Gathers one element of each row by its index, and scatters its gradient.
struct Params { count: u32, width: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> at: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(256)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group_index(group, groups) * 256u + lane;
    if row < p.count { y[row] = x[row * p.width + at[row]]; }
}

// x holds the rows' gradients
@compute @workgroup_size(256)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i < p.count { y[i] = select(0.0, x[i / p.width], i % p.width == at[i / p.width]); }
}
