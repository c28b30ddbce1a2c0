// The gradient of each step of the log decay from those of the exponents that the step is in: for each token t of a
// chunk dg = sum over i >= t of (rows[i] + sum over j < t of e[i][j]), with e = x * y or (WEIGHT 1) beta of the row * x
// * y; where ENDS is 1 also sum over j < t of columns[j], and whole. ADD is 1 where dg is added to.
//
// Every term has e^(g of t) as a factor. A difference of running sums would add terms without it and take them away
// again, and leave their rounding, which is larger than the gradient where the decay is strong.
struct Params { chunks: u32, v_heads: u32, size: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> chunks: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> y: array<f32>;
@group(0) @binding(3) var<storage, read> factors: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> rows: array<f32>;
@group(0) @binding(5) var<storage, read> columns: array<f32>;
@group(0) @binding(6) var<storage, read> whole: array<f32>;
@group(0) @binding(7) var<storage, read_write> dg: array<f32>;

// what lies below the diagonal, row by row: sum over the rows from t on, of column j
var<workgroup> below: array<f32, 2016>;

fn place(t: u32, j: u32) -> u32 { return t * (t - 1u) / 2u + j; }

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let at = group_index(group, groups);
    if at >= p.chunks * p.v_heads { return; }
    let chunk = chunks[at / p.v_heads];
    let first = chunk.x * p.v_heads + at % p.v_heads;
    var column = 0.0;
    for (var t = chunk.y - 1u; t > lane; t--) {
        let token = first + t * p.v_heads;
        var e = x[token * 64u + lane] * y[token * 64u + lane];
        if WEIGHT == 1u { e *= factors[token].z; }
        column += e;
        below[place(t, lane)] = column;
    }
    workgroupBarrier();
    if lane >= chunk.y { return; }
    var inside = 0.0;
    for (var j = 0u; j < lane; j++) { inside += below[place(lane, j)]; }
    var after = 0.0;
    for (var i = chunk.y; i > lane; i--) { after += rows[first + (i - 1u) * p.v_heads]; }
    var sum = after + inside;
    if ENDS == 1u {
        var before = 0.0;
        for (var j = 0u; j < lane; j++) { before += columns[first + j * p.v_heads]; }
        sum += before + whole[at];
    }
    let own = first + lane * p.v_heads;
    if ADD == 1u { sum += dg[own]; }
    dg[own] = sum;
}
