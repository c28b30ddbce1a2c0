// c = alpha * (a b), one product for each chunk and value head. Rows and columns that are tokens end with the chunk.
//
// Constants: A_ALONG and B_ALONG are 1 where a's rows, b's columns lie next to each other in memory; MASK_A is 1 where
// only a's part on and below the diagonal counts, 2 where a is such a matrix transposed; SQUARE is 1 where c is a
// matrix of tokens by tokens, written to its 64th column; LOWER is 1 where c is kept on and below its diagonal, 2
// below; GAMMA is 1 where c is multiplied with the decays; FACTOR_L, FACTOR_M, FACTOR_N name the factor (0 to 3, 4 for
// none) of b's rows, c's rows, c's columns; ADD is 1 where c is added to.
struct Side { rows: u32, cols: u32, token: u32, chunk: u32, head: u32, share: u32 }
struct Params { a: Side, b: Side, c: Side, m: u32, n: u32, l: u32, chunks: u32, v_heads: u32, alpha: f32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> chunks: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read> factors: array<f32>;
@group(0) @binding(4) var<storage, read> gamma: array<f32>;
@group(0) @binding(5) var<storage, read_write> c: array<f32>;

// one more than the 16 vec4s of a row, so that the columns of a side lie in different banks
const STRIDE: u32 = 17u;
var<workgroup> left: array<vec4<f32>, 272>;
var<workgroup> right: array<vec4<f32>, 272>;

fn base(side: Side, at: u32, first: u32, head: u32) -> u32 {
    return at * side.chunk + first * side.token + (head / side.share) * side.head;
}

// as the operands are stored
fn rounded(x: f32) -> f32 { return widen_R(narrow_R(vec4<f32>(x))).x; }

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tiles_n = max((p.n + 63u) / 64u, 1u);
    let tiles = max((p.m + 63u) / 64u, 1u) * tiles_n;
    let index = group_index(group, groups);
    if index >= p.chunks * p.v_heads * tiles { return; }
    let tile = index % tiles;
    let head = (index / tiles) % p.v_heads;
    let at = index / tiles / p.v_heads;
    let chunk = chunks[at];
    let m_end = select(p.m, chunk.y, p.m == 0u);
    let n_end = select(p.n, chunk.y, p.n == 0u);
    let l_end = select(p.l, chunk.y, p.l == 0u);
    let m_first = tile / tiles_n * 64u;
    let n_first = tile % tiles_n * 64u;
    let a_base = base(p.a, at, chunk.x, head);
    let b_base = base(p.b, at, chunk.x, head);
    let c_base = base(p.c, at, chunk.x, head);
    let token = chunk.x * p.v_heads + head;

    var sums: array<vec4<f32>, 4>;
    let m_own = lane / 16u * 4u;
    let n_own = lane % 16u * 4u;
    for (var l_first = 0u; l_first < l_end; l_first += 16u) {
        var av: vec4<f32>;
        var bv: vec4<f32>;
        // each invocation reads four elements of each side: neighbours read what lies side by side
        let a_l = select(lane % 16u, lane / 16u, A_ALONG == 1u);
        let a_m = select(lane / 16u, lane % 16u, A_ALONG == 1u);
        let b_l = select(lane % 16u, lane / 16u, B_ALONG == 1u);
        let b_n = select(lane / 16u, lane % 16u, B_ALONG == 1u);
        for (var r = 0u; r < 4u; r++) {
            let l = l_first + a_l;
            let m = m_first + a_m * 4u + r;
            let masked = (MASK_A == 1u && l > m) || (MASK_A == 2u && m > l);
            av[r] = 0.0;
            if m < m_end && l < l_end && !masked {
                av[r] = a[a_base + m * p.a.rows + l * p.a.cols];
            }
            let lb = l_first + b_l;
            let n = n_first + b_n * 4u + r;
            bv[r] = 0.0;
            if n < n_end && lb < l_end {
                var x = b[b_base + lb * p.b.rows + n * p.b.cols];
                if FACTOR_L < 4u {
                    x = rounded(x * factors[(token + lb * p.v_heads) * 4u + FACTOR_L]);
                }
                bv[r] = x;
            }
        }
        workgroupBarrier();
        left[a_l * STRIDE + a_m] = av;
        right[b_l * STRIDE + b_n] = bv;
        workgroupBarrier();
        for (var l = 0u; l < 16u; l++) {
            let x = left[l * STRIDE + lane / 16u];
            let y = right[l * STRIDE + lane % 16u];
            sums[0] += x.x * y;
            sums[1] += x.y * y;
            sums[2] += x.z * y;
            sums[3] += x.w * y;
        }
    }

    let n_written = select(n_end, 64u, SQUARE == 1u);
    for (var i = 0u; i < 4u; i++) {
        let m = m_first + m_own + i;
        if m >= m_end { break; }
        var row = p.alpha * sums[i];
        if FACTOR_M < 4u { row *= factors[(token + m * p.v_heads) * 4u + FACTOR_M]; }
        for (var j = 0u; j < 4u; j++) {
            let n = n_first + n_own + j;
            if n >= n_written { break; }
            var x = row[j];
            if FACTOR_N < 4u && n < n_end { x *= factors[(token + n * p.v_heads) * 4u + FACTOR_N]; }
            if GAMMA == 1u { x *= gamma[(token + m * p.v_heads) * 64u + n]; }
            if (LOWER == 1u && n > m) || (LOWER == 2u && n >= m) { x = 0.0; }
            let to = c_base + m * p.c.rows + n * p.c.cols;
            if ADD == 1u { x += c[to]; }
            c[to] = x;
        }
    }
}
