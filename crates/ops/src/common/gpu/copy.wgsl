// Rows of `width` units from `x` to `y`; `repeat` rows in turn come from the same one. Places and strides are in units.
struct Params { count: u32, width: u32, y_first: u32, y_stride: u32, x_first: u32, x_stride: u32, repeat: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> y: array<Unit>;
@group(0) @binding(1) var<storage, read> x: array<Unit>;

@compute @workgroup_size(256)
fn rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i >= p.count { return; }
    let row = i / p.width;
    let column = i % p.width;
    y[p.y_first + row * p.y_stride + column] = x[p.x_first + row / p.repeat * p.x_stride + column];
}

@compute @workgroup_size(256)
fn zeros(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i >= p.count { return; }
    y[p.y_first + i / p.width * p.y_stride + i % p.width] = Unit(0u);
}
