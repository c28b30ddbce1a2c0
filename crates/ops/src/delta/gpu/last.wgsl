// The gradient of a chunk's whole decay, which is e^g_last * sum of (states * gradients): KEPT 1 writes it to y, one
// value a chunk and head. KEPT 0 adds it, with the sum of x over the tokens but the last, to y at the last token; at
// the others y -= x. The last token's x belongs to a decay over no token.
struct Params { chunks: u32, v_heads: u32, size: u32 }
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
    if at >= p.chunks * p.v_heads { return; }
    let chunk = chunks[at / p.v_heads];
    let first = chunk.x * p.v_heads + at % p.v_heads;
    let end = first + (chunk.y - 1u) * p.v_heads;
    var sum = 0.0;
    for (var i = lane.index; i < p.size; i += 256u) { sum += states[at * p.size + i] * gradients[at * p.size + i]; }
    let kept = factors[end].x * group_sum(sum, lane);
    if KEPT == 1u {
        if lane.index == 0u { y[at] = kept; }
        return;
    }
    var own = 0.0;
    if lane.index + 1u < chunk.y { own = x[first + lane.index * p.v_heads]; }
    let all = group_sum(own, lane);
    if lane.index < chunk.y {
        let place = first + lane.index * p.v_heads;
        y[place] += select(-own, kept + all, place == end);
    }
}
