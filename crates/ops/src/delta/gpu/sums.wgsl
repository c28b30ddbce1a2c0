// Sums over the tokens of a chunk.
struct Params { chunks: u32, v_heads: u32, size: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> chunks: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

// The same value, unknown to the driver's compiler: some simplify (a - (a + b)) + b to 0. A size has fewer than 31 bits.
fn opaque(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) | (p.size >> 31u));
}

// Running sums of each head, from the first token or (BACK 1) from the last. What each addition rounds away is summed
// beside (Neumaier), so a sum that cancels is right to its own size.
@compute @workgroup_size(64)
fn running(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let lines = (p.v_heads + 63u) / 64u;
    let at = group_index(group, groups);
    let head = at % lines * 64u + lane;
    if at >= p.chunks * lines || head >= p.v_heads { return; }
    let chunk = chunks[at / lines];
    var sum = 0.0;
    var lost = 0.0;
    for (var step = 0u; step < chunk.y; step++) {
        let i = select(step, chunk.y - 1u - step, BACK == 1u);
        let place = (chunk.x + i) * p.v_heads + head;
        let term = x[place];
        let next = opaque(sum + term);
        if abs(sum) >= abs(term) { lost += (sum - next) + term; } else { lost += (term - next) + sum; }
        sum = next;
        y[place] = sum + lost;
    }
}
