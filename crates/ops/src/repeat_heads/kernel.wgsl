// Each unit of the gradient is the sum of its repeats, in their order.
struct Params { count: u32, width: u32, times: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> dy: array<Stored>;
@group(0) @binding(1) var<storage, read_write> dx: array<Stored>;

@compute @workgroup_size(256)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i >= p.count { return; }
    let first = i / p.width * p.times * p.width + i % p.width;
    var sum = widen(dy[first]);
    for (var r = 1u; r < p.times; r++) { sum += widen(dy[first + r * p.width]); }
    dx[i] = narrow(sum);
}
