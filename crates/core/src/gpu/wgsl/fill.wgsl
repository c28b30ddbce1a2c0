struct Params { n: u32, value: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> x: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i < p.n {
        x[i] = p.value;
    }
}
