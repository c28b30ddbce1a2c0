// One workgroup per 64 keys against the one query of each of up to ROWS heads that share them; a second pass merges the
// parts.
@group(0) @binding(0) var<storage, read_write> parts: array<vec4<f32>>;
// of each part, the largest score and the sum of the weights
@group(0) @binding(1) var<storage, read_write> sums: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read> q: array<X4>;
@group(0) @binding(3) var<storage, read> k: array<X4>;
@group(0) @binding(4) var<storage, read> v: array<X4>;
const SIDE: u32 = 64u;
var<workgroup> queries: array<vec4<f32>, ROWS * 64u>;
var<workgroup> shares: array<f32, ROWS * 256u>;
var<workgroup> scores: array<f32, ROWS * SIDE>;
var<workgroup> rows: array<vec4<f32>, 256>;

fn load_q(at: u32) -> vec4<f32> {
    let i = at / 4u;
    if ODD == 0u { return widen_X(q[i]); }
    return shifted(widen_X(q[i]), widen_X(q[min(i + 1u, arrayLength(&q) - 1u)]), at % 4u);
}

fn load_k(at: u32) -> vec4<f32> {
    let i = at / 4u;
    if ODD == 0u { return widen_X(k[i]); }
    return shifted(widen_X(k[i]), widen_X(k[min(i + 1u, arrayLength(&k) - 1u)]), at % 4u);
}

fn load_v(at: u32) -> vec4<f32> {
    let i = at / 4u;
    if ODD == 0u { return widen_X(v[i]); }
    return shifted(widen_X(v[i]), widen_X(v[min(i + 1u, arrayLength(&v) - 1u)]), at % 4u);
}

@compute @workgroup_size(256)
fn decode(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let each = p.heads / p.shared_heads;
    let passes = (each + ROWS - 1u) / ROWS;
    let shared_head = group.y / passes;
    let first_row = group.y % passes * ROWS;
    let first_head = group.z * p.heads + shared_head * each + first_row;
    let row_count = min(ROWS, each - first_row);
    let first = group.x * SIDE;
    let width4 = (p.width + 3u) / 4u;
    for (var i = lane; i < row_count * width4; i += 256u) {
        let col = i % width4 * 4u;
        queries[i / width4 * 64u + i % width4] =
            until(load_q((first_head + i / width4) * p.width + col), col, p.width);
    }
    for (var i = row_count * 64u + lane; i < ROWS * 64u; i += 256u) { queries[i] = vec4<f32>(0.0); }
    workgroupBarrier();

    // eight invocations per key
    for (var half = 0u; half < SIDE; half += 32u) {
        let key = first + half + lane / 8u;
        let row = ((group.z * p.positions + key) * p.shared_heads + shared_head) * p.width;
        var s: array<f32, ROWS>;
        for (var r = 0u; r < ROWS; r++) { s[r] = 0.0; }
        if key < p.positions {
            for (var c = lane % 8u; c < width4; c += 8u) {
                let x = until(load_k(row + 4u * c), 4u * c, p.width);
                for (var r = 0u; r < ROWS; r++) { s[r] += dot(x, queries[r * 64u + c]); }
            }
        }
        workgroupBarrier();
        for (var r = 0u; r < ROWS; r++) { shares[r * 256u + lane] = s[r]; }
        workgroupBarrier();
        if lane < 32u * ROWS {
            var sum = 0.0;
            for (var i = 0u; i < 8u; i++) { sum += shares[lane * 8u + i]; }
            let seen = first + half + lane % 32u < p.positions;
            scores[lane / 32u * SIDE + half + lane % 32u] = select(-3.0e38, p.scale * sum, seen);
        }
    }
    workgroupBarrier();

    let r = lane / 32u;
    let at = r * SIDE + lane % 32u;
    var top = -1.0e38;
    var weights = vec4<f32>(0.0);
    if r < ROWS {
        for (var i = 0u; i < SIDE; i++) { top = max(top, scores[r * SIDE + i]); }
        weights = exp4(vec4<f32>(scores[at], scores[at + 32u], -3.0e38, -3.0e38) - vec4<f32>(top));
    }
    workgroupBarrier();
    if r < ROWS {
        scores[at] = weights.x;
        scores[at + 32u] = weights.y;
    }
    workgroupBarrier();
    if r < row_count && lane % 32u == 0u {
        var sum = 0.0;
        for (var i = 0u; i < SIDE; i++) { sum += scores[r * SIDE + i]; }
        sums[(first_head + r) * p.count + group.x] = vec2<f32>(top, sum);
    }

    let c = lane % QUADS;
    let step = 256u / QUADS;
    var acc: array<vec4<f32>, ROWS>;
    for (var r = 0u; r < ROWS; r++) { acc[r] = vec4<f32>(0.0); }
    for (var i = lane / QUADS; i < min(SIDE, p.positions - first); i += step) {
        let row = ((group.z * p.positions + first + i) * p.shared_heads + shared_head) * p.width;
        let x = load_v(row + 4u * min(c, width4 - 1u));
        for (var r = 0u; r < ROWS; r++) { acc[r] += scores[r * SIDE + i] * x; }
    }
    for (var r = 0u; r < ROWS; r++) {
        workgroupBarrier();
        rows[lane] = acc[r];
        for (var half = step / 2u; half > 0u; half /= 2u) {
            workgroupBarrier();
            if lane / QUADS < half { rows[lane] += rows[lane + half * QUADS]; }
        }
        if lane < width4 && r < row_count {
            parts[((first_head + r) * p.count + group.x) * width4 + lane] = rows[lane];
        }
    }
}
