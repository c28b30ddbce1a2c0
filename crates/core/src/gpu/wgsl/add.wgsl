struct Params { n: u32, value: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> sum: array<X4>;
@group(0) @binding(1) var<storage, read> x: array<X4>;

@compute @workgroup_size(256)
fn in_place(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i < p.n {
        sum[i] = narrow_X(widen_X(sum[i]) + widen_X(x[i]));
    }
}

@group(0) @binding(2) var<storage, read> other: array<X4>;

@compute @workgroup_size(256)
fn apart(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i < p.n {
        sum[i] = narrow_X(widen_X(x[i]) + widen_X(other[i]));
    }
}
