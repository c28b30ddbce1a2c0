// Products of 64 rows that a workgroup owns with 64 streamed rows, and sums over the latter: what all passes of
// attention are made of. The text before it gives own(which, at) and streamed(which, at), four elements of the one pair
// of inputs or the other, and own_row(row) and streamed_row(row), where a row begins.
const SIDE: u32 = 64u;
const DEPTH: u32 = 32u;
// two tiles, 32 elements of each row down and 64 rows across; afterwards the weights, streamed rows down
var<workgroup> tiles: array<vec4<f32>, 1024>;

struct Block { x: vec4<f32>, y: vec4<f32>, z: vec4<f32>, w: vec4<f32> }

fn turned(t: Block) -> Block {
    return Block(
        vec4<f32>(t.x.x, t.y.x, t.z.x, t.w.x), vec4<f32>(t.x.y, t.y.y, t.z.y, t.w.y),
        vec4<f32>(t.x.z, t.y.z, t.z.z, t.w.z), vec4<f32>(t.x.w, t.y.w, t.z.w, t.w.w),
    );
}

fn line(which: u32, is_own: bool, row: u32, end: u32, at: u32) -> vec4<f32> {
    if row >= end || at >= p.width { return vec4<f32>(0.0); }
    if is_own { return until(own(which, own_row(row) + at), at, p.width); }
    return until(streamed(which, streamed_row(row) + at), at, p.width);
}

// the block of an invocation, in vec4s: along the width, along the rows
fn place(lane: u32) -> vec2<u32> {
    let t = lane % 128u;
    return vec2<u32>(t / 8u % 8u, t % 8u + 8u * (t / 64u));
}

// the first half of the invocations brings owned rows, the second streamed ones
fn fetch(lane: u32, which: u32, first: vec2<u32>, ends: vec2<u32>, depth: u32) -> Block {
    let is_own = lane < 128u;
    let at = place(lane) * 4u + vec2<u32>(depth, select(first.y, first.x, is_own));
    let end = select(ends.y, ends.x, is_own);
    return turned(Block(
        line(which, is_own, at.y, end, at.x), line(which, is_own, at.y + 1u, end, at.x),
        line(which, is_own, at.y + 2u, end, at.x), line(which, is_own, at.y + 3u, end, at.x),
    ));
}

// the dot products of four owned rows, which lane / 16 counts, each with four streamed ones, which lane % 16 counts
fn dots(lane: u32, which: u32, first: vec2<u32>, ends: vec2<u32>) -> Block {
    var sums = Block(vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0), vec4<f32>(0.0));
    let at = place(lane);
    let slot = lane / 128u * 512u + at.x * SIDE + at.y;
    var next = fetch(lane, which, first, ends, 0u);
    for (var depth = 0u; depth < p.width; depth += DEPTH) {
        workgroupBarrier();
        tiles[slot] = next.x;
        tiles[slot + 16u] = next.y;
        tiles[slot + 32u] = next.z;
        tiles[slot + 48u] = next.w;
        workgroupBarrier();
        // in flight while the tiles are multiplied
        if depth + DEPTH < p.width { next = fetch(lane, which, first, ends, depth + DEPTH); }
        for (var i = 0u; i < DEPTH; i++) {
            let x = tiles[i * 16u + lane / 16u];
            let y = tiles[512u + i * 16u + lane % 16u];
            sums.x = fma(vec4<f32>(x.x), y, sums.x);
            sums.y = fma(vec4<f32>(x.y), y, sums.y);
            sums.z = fma(vec4<f32>(x.z), y, sums.z);
            sums.w = fma(vec4<f32>(x.w), y, sums.w);
        }
    }
    return sums;
}

// where the weights of four owned rows for a streamed one lie: turned so that neighbours write to different banks
fn weights_at(streamed: u32, quad: u32) -> u32 {
    return streamed * 16u + (quad ^ (streamed / 4u));
}

// every invocation's weights, before rows are summed by them
fn share(lane: u32, weights: Block) {
    let by_streamed = turned(weights);
    let row = lane % 16u * 4u;
    workgroupBarrier();
    tiles[weights_at(row, lane / 16u)] = by_streamed.x;
    tiles[weights_at(row + 1u, lane / 16u)] = by_streamed.y;
    tiles[weights_at(row + 2u, lane / 16u)] = by_streamed.z;
    tiles[weights_at(row + 3u, lane / 16u)] = by_streamed.w;
    workgroupBarrier();
}

// COLS vec4s of each of four owned rows, 64 elements apart, which lane % 16 counts
var<private> sums: array<vec4<f32>, COLS * 4u>;

fn clear_sums() {
    for (var i = 0u; i < COLS * 4u; i++) { sums[i] = vec4<f32>(0.0); }
}

// adds streamed rows by the shared weights
fn add_rows(lane: u32, which: u32, first: u32, end: u32) {
    let last = (p.width - 1u) / 4u;
    for (var row = 0u; row < min(SIDE, end - first); row++) {
        let w = tiles[weights_at(row, lane / 16u)];
        let base = streamed_row(first + row);
        for (var c = 0u; c < COLS; c++) {
            let x = streamed(which, base + 4u * min(lane % 16u + 16u * c, last));
            sums[4u * c] = fma(vec4<f32>(w.x), x, sums[4u * c]);
            sums[4u * c + 1u] = fma(vec4<f32>(w.y), x, sums[4u * c + 1u]);
            sums[4u * c + 2u] = fma(vec4<f32>(w.z), x, sums[4u * c + 2u]);
            sums[4u * c + 3u] = fma(vec4<f32>(w.w), x, sums[4u * c + 3u]);
        }
    }
}

// writes four owned rows, each times its factor
fn put_sums(lane: u32, first: u32, end: u32, factors: vec4<f32>) {
    for (var i = 0u; i < 4u; i++) {
        let row = first + lane / 16u * 4u + i;
        if row < end {
            for (var c = 0u; c < COLS; c++) {
                let col = 4u * (lane % 16u + 16u * c);
                if col < p.width { put_out(own_row(row), col, factors[i] * sums[4u * c + i]); }
            }
        }
    }
}
