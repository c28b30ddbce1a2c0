// What the decay of a chunk does: gamma[i][j] = e^(g of the tokens after j up to i) for j <= i and 0 above, and for each
// token four factors: from the chunk's start, to its end, beta, beta from the start.
//
// SUMS is 1 where g holds running sums. Otherwise each exponent is summed on its own: a difference of two running sums
// would lose what strong decay leaves.
struct Params { chunks: u32, groups: u32, size: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> chunks: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> g: array<f32>;
@group(0) @binding(2) var<storage, read> beta: array<f32>;
@group(0) @binding(3) var<storage, read_write> gamma: array<f32>;
@group(0) @binding(4) var<storage, read_write> factors: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) j: u32) {
    let at = group_index(group, groups);
    if at >= p.chunks * p.groups { return; }
    let chunk = chunks[at / p.groups];
    let head = at % p.groups;
    let first = chunk.x * p.groups + head;
    if j >= chunk.y {
        for (var i = 0u; i < chunk.y; i++) { gamma[(first + i * p.groups) * 64u + j] = 0.0; }
        return;
    }
    let own = first + j * p.groups;
    var start = g[own];
    if SUMS == 0u {
        start = 0.0;
        for (var i = 0u; i <= j; i++) { start += g[first + i * p.groups]; }
    }
    for (var i = 0u; i < j; i++) { gamma[(first + i * p.groups) * 64u + j] = 0.0; }
    gamma[own * 64u + j] = 1.0;
    var exponent = 0.0;
    for (var i = j + 1u; i < chunk.y; i++) {
        let token = first + i * p.groups;
        if SUMS == 0u { exponent += g[token]; } else { exponent = g[token] - start; }
        gamma[token * 64u + j] = exp1(exponent);
    }
    let write = select(0.0, beta[own], BETA == 1u);
    let from_start = exp1(start);
    factors[own] = vec4<f32>(from_start, exp1(exponent), write, write * from_start);
}
