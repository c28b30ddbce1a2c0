// Elementwise operations of one argument: the text of the operation defines value(x) and derivative(x) of four elements
// at once.
struct Params { quads: u32, scalar: f32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<X4>;
@group(0) @binding(1) var<storage, read_write> y: array<X4>;
@group(0) @binding(2) var<storage, read> dy: array<X4>;

@compute @workgroup_size(256)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i < p.quads {
        y[i] = narrow_X(value(widen_X(x[i])));
    }
}

// y holds dy before
@compute @workgroup_size(256)
fn backward_in_place(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i < p.quads {
        y[i] = narrow_X(widen_X(y[i]) * derivative(widen_X(x[i])));
    }
}

@compute @workgroup_size(256)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i < p.quads {
        y[i] = narrow_X(widen_X(dy[i]) * derivative(widen_X(x[i])));
    }
}
