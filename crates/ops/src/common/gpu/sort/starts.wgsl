// Where the pairs of each id begin: how many have a smaller one. The last start is where those that name none begin.
struct Params { count: u32, below: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> pairs: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read_write> starts: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let id = group_index(group, groups) * 256u + lane;
    if id > p.below { return; }
    var first = 0u;
    var end = p.count;
    while first < end {
        let middle = (first + end) / 2u;
        if pairs[middle].x < id { first = middle + 1u; } else { end = middle; }
    }
    starts[id] = first;
}
