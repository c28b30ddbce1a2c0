// The decay factors of a chunk: gamma[i][j] = e^(g of the tokens after j up to i) for j <= i and 0 above, and for
// each token four factors: from the chunk's start, to its end, beta, beta from the start.
//
// SUMS is 1 where g holds running sums. Otherwise each exponent is summed on its own: a difference of two running sums
// would lose what strong decay leaves. The relative error of an exponential is the absolute error of its exponent, so a
// log decay is split into a multiple of 1/64, whose sums are exact, and a remainder of at most 1/128, whose sums stay
// small.
struct Params { chunks: u32, v_heads: u32, size: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> chunks: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> g: array<f32>;
@group(0) @binding(2) var<storage, read> beta: array<f32>;
@group(0) @binding(3) var<storage, read_write> gamma: array<f32>;
@group(0) @binding(4) var<storage, read_write> factors: array<vec4<f32>>;

// a log decay as a multiple of 1/64 and a remainder; below -256 it is -256, for e^-256 is 0
fn split_step(g: f32) -> vec2<f32> {
    let step = select(g, -256.0, g < -256.0);
    let coarse = round(step * 64.0) / 64.0;
    return vec2<f32>(coarse, step - coarse);
}

// The same value, unknown to the driver's compiler: some simplify (a - (a + b)) + b to 0. A size has fewer than 31 bits.
fn opaque(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) | (p.size >> 31u));
}

// e^(x + y) with what the sum rounds away; y is the smaller of both, or x is 0
fn exp_of_sum(x: vec2<f32>) -> f32 {
    let sum = opaque(x.x + x.y);
    let lost = (x.x - sum) + x.y;
    let y = exp1(sum);
    return fma(y, lost, y);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) j: u32) {
    let at = group_index(group, groups);
    if at >= p.chunks * p.v_heads { return; }
    let chunk = chunks[at / p.v_heads];
    let head = at % p.v_heads;
    let first = chunk.x * p.v_heads + head;
    if j >= chunk.y {
        for (var i = 0u; i < chunk.y; i++) { gamma[(first + i * p.v_heads) * 64u + j] = 0.0; }
        return;
    }
    let own = first + j * p.v_heads;
    var start = vec2<f32>(g[own], 0.0);
    if SUMS == 0u {
        start = vec2<f32>(0.0);
        for (var i = 0u; i <= j; i++) { start += split_step(g[first + i * p.v_heads]); }
    }
    for (var i = 0u; i < j; i++) { gamma[(first + i * p.v_heads) * 64u + j] = 0.0; }
    gamma[own * 64u + j] = 1.0;
    var exponent = vec2<f32>(0.0);
    for (var i = j + 1u; i < chunk.y; i++) {
        let token = first + i * p.v_heads;
        if SUMS == 0u { exponent += split_step(g[token]); } else { exponent.x = g[token] - start.x; }
        gamma[token * 64u + j] = exp_of_sum(exponent);
    }
    let write = select(0.0, beta[own], BETA == 1u);
    let from_start = exp_of_sum(start);
    factors[own] = vec4<f32>(from_start, exp_of_sum(exponent), write, write * from_start);
}
