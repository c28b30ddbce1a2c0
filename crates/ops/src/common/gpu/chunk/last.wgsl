// The gradient of a chunk's whole decay: y[last] += e^g_last * sum of (states * gradients) + sum of x over the tokens.
// Everywhere: y -= x.
struct Params { chunks: u32, groups: u32, size: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> chunks: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read> states: array<f32>;
@group(0) @binding(4) var<storage, read> gradients: array<f32>;
@group(0) @binding(5) var<storage, read> factors: array<vec4<f32>>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, lane: Lane) {
    let at = group_index(group, groups);
    if at >= p.chunks * p.groups { return; }
    let chunk = chunks[at / p.groups];
    let first = chunk.x * p.groups + at % p.groups;
    let end = first + (chunk.y - 1u) * p.groups;
    var sum = 0.0;
    for (var i = lane.index; i < p.size; i += 256u) { sum += states[at * p.size + i] * gradients[at * p.size + i]; }
    let kept = group_sum(sum, lane);
    var own = 0.0;
    if lane.index < chunk.y { own = x[first + lane.index * p.groups]; }
    let all = group_sum(own, lane);
    if lane.index < chunk.y {
        let place = first + lane.index * p.groups;
        var fresh = y[place] - own;
        if place == end { fresh += factors[end].x * kept + all; }
        y[place] = fresh;
    }
}
