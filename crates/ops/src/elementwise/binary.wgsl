// Elementwise operations of two arguments: the text of the operation defines value(a, b) and derivatives(a, b) of four
// elements at once.
struct Params { quads: u32, scalar: f32 }
struct Derivatives { a: vec4<f32>, b: vec4<f32> }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> a: array<X4>;
@group(0) @binding(1) var<storage, read> b: array<X4>;
@group(0) @binding(2) var<storage, read_write> y: array<X4>;
@group(0) @binding(3) var<storage, read_write> db: array<X4>;
@group(0) @binding(4) var<storage, read> dy: array<X4>;

@compute @workgroup_size(256)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i < p.quads {
        y[i] = narrow_X(value(widen_X(a[i]), widen_X(b[i])));
    }
}

// y holds dy before, and da after
@compute @workgroup_size(256)
fn backward_in_place(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i < p.quads {
        let d = widen_X(y[i]);
        let s = derivatives(widen_X(a[i]), widen_X(b[i]));
        y[i] = narrow_X(d * s.a);
        db[i] = narrow_X(d * s.b);
    }
}

@compute @workgroup_size(256)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i < p.quads {
        let d = widen_X(dy[i]);
        let s = derivatives(widen_X(a[i]), widen_X(b[i]));
        y[i] = narrow_X(d * s.a);
        db[i] = narrow_X(d * s.b);
    }
}

// one derivative alone; its dy is bound where db was, or is in y
@group(0) @binding(3) var<storage, read> dy_of_one: array<X4>;

@compute @workgroup_size(256)
fn backward_a(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i < p.quads { y[i] = narrow_X(widen_X(dy_of_one[i]) * derivatives(widen_X(a[i]), widen_X(b[i])).a); }
}

@compute @workgroup_size(256)
fn backward_a_in_place(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i < p.quads { y[i] = narrow_X(widen_X(y[i]) * derivatives(widen_X(a[i]), widen_X(b[i])).a); }
}

@compute @workgroup_size(256)
fn backward_b(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i < p.quads { y[i] = narrow_X(widen_X(dy_of_one[i]) * derivatives(widen_X(a[i]), widen_X(b[i])).b); }
}

@compute @workgroup_size(256)
fn backward_b_in_place(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i < p.quads { y[i] = narrow_X(widen_X(y[i]) * derivatives(widen_X(a[i]), widen_X(b[i])).b); }
}
