// Matrices of tokens by tokens, element by element.
struct Params { chunks: u32, v_heads: u32, size: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> chunks: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> y: array<f32>;
@group(0) @binding(3) var<storage, read_write> z: array<f32>;

// z = x * y on and below the diagonal, or (STRICT 1) below it, 0 elsewhere
@compute @workgroup_size(64)
fn gated(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) j: u32) {
    let at = group_index(group, groups);
    if at >= p.chunks * p.v_heads { return; }
    let chunk = chunks[at / p.v_heads];
    let first = chunk.x * p.v_heads + at % p.v_heads;
    for (var i = 0u; i < chunk.y; i++) {
        let place = (first + i * p.v_heads) * 64u + j;
        var fresh = 0.0;
        if j + STRICT <= i { fresh = x[place] * y[place]; }
        z[place] = fresh;
    }
}

@group(0) @binding(4) var<storage, read> factors: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> rows: array<f32>;

// rows = the row sums of e = x * y below the diagonal; z = those of weighted e less its column sums, the weight being
// beta (WEIGHT 1) or 1. What lies on the diagonal would be added and taken away.
@compute @workgroup_size(64)
fn sums(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let at = group_index(group, groups);
    if at >= p.chunks * p.v_heads { return; }
    let chunk = chunks[at / p.v_heads];
    let first = chunk.x * p.v_heads + at % p.v_heads;
    if i >= chunk.y { return; }
    let own = first + i * p.v_heads;
    var row = 0.0;
    for (var j = 0u; j < i; j++) { row += x[own * 64u + j] * y[own * 64u + j]; }
    var column = 0.0;
    for (var m = i + 1u; m < chunk.y; m++) {
        let token = first + m * p.v_heads;
        let e = x[token * 64u + i] * y[token * 64u + i];
        if WEIGHT == 1u { column += factors[token].z * e; } else { column += e; }
    }
    rows[own] = row;
    z[own] = select(1.0, factors[own].z, WEIGHT == 1u) * row - column;
}
