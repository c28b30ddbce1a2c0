// needs cooperative matrices
// One workgroup per tile of 8 × 8 fragments: each of its four subgroups of 32 has 4 × 4 of them, so that a fragment
// that was read is multiplied four times. Both sides lie in shared memory as they lie outside, so that no tile is
// transposed. The next tile is not fetched ahead: its registers are worth more as a second workgroup on the same core.
const TILE: u32 = 8u * FRAGMENT;
const DEPTH: u32 = 32u;
const INVOCATIONS: u32 = 128u;
// values of a line of each tile, and of a line with what keeps neighbours in different banks
const ACROSS_A: u32 = select(TILE, DEPTH, A_K_INNER == 1u);
const ACROSS_B: u32 = select(TILE, DEPTH, B_K_INNER == 1u);
const LINE_A: u32 = (ACROSS_A + UNIT) / ELEMENT;
const LINE_B: u32 = (ACROSS_B + UNIT) / ELEMENT;
var<workgroup> finished: array<f32, 4u * FRAGMENT * FRAGMENT>;

// the line of a tile and the number in it of each of the four units that an invocation brings
fn place(lane: u32, nth: u32, across: u32) -> vec2<u32> {
    let i = lane + INVOCATIONS * nth;
    return vec2<u32>(i / (across / UNIT), i % (across / UNIT) * UNIT);
}

// where a unit of a side lies: its first number, that number's place in its line, and where the line ends; outside of
// the matrix the line has ended
struct Spot { at: u32, inner: u32, end: u32 }

// `across` is the tile's first row of the left side or column of the right one, of which there are `size`
fn spot(own: vec2<u32>, k_inner: bool, across: u32, size: u32, k: u32, k_end: u32, stride: u32) -> Spot {
    let line = own.x + select(k, across, k_inner);
    let inner = own.y + select(across, k, k_inner);
    let at = line * stride + inner;
    if EDGE == 0u { return Spot(at, 0u, 0u); }
    let end = select(size, k_end, k_inner);
    let inside = line < select(k_end, size, k_inner) && inner < end;
    return Spot(select(0u, at, inside), inner, select(0u, end, inside));
}

fn fetch_a(lane: u32, nth: u32, batch: u32, row: u32, k: u32, k_end: u32) -> Unit {
    let s = spot(place(lane, nth, ACROSS_A), A_K_INNER == 1u, row, p.m, k, k_end, p.a_stride);
    return unit_a(p.a_at + batch * p.a_batch + s.at, s.inner, s.end);
}

fn fetch_b(lane: u32, nth: u32, batch: u32, col: u32, k: u32, k_end: u32) -> Unit {
    let s = spot(place(lane, nth, ACROSS_B), B_K_INNER == 1u, col, p.n, k, k_end, p.b_stride);
    return unit_b(p.b_at + batch * p.b_batch + s.at, s.inner, s.end);
}

fn slot(lane: u32, nth: u32, across: u32, line: u32) -> u32 {
    let own = place(lane, nth, across);
    return own.x * line + own.y / ELEMENT;
}

fn left(row: u32, k: u32) -> Left {
    if A_K_INNER == 1u { return coopLoadT<Left>(&tile_a[row * LINE_A + k / ELEMENT], LINE_A); }
    return coopLoad<Left>(&tile_a[k * LINE_A + row / ELEMENT], LINE_A);
}

fn right(col: u32, k: u32) -> Right {
    if B_K_INNER == 1u { return coopLoad<Right>(&tile_b[col * LINE_B + k / ELEMENT], LINE_B); }
    return coopLoadT<Right>(&tile_b[k * LINE_B + col / ELEMENT], LINE_B);
}

// a fragment of results, by way of shared memory
fn finish(lane: u32, batch: u32, row: u32, col: u32) {
    let own = lane / 32u * FRAGMENT * FRAGMENT;
    workgroupBarrier();
    for (var i = lane % 32u; i < FRAGMENT * FRAGMENT / 4u; i += 32u) {
        let at = own + 4u * i;
        let x = vec4<f32>(finished[at], finished[at + 1u], finished[at + 2u], finished[at + 3u]);
        put_c(batch, row + i / (FRAGMENT / 4u), col + i % (FRAGMENT / 4u) * 4u, x);
    }
    workgroupBarrier();
}

@compute @workgroup_size(INVOCATIONS)
fn tile(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = vec2<u32>(group.y, group.x) * TILE;
    let batch = group.z / p.splits;
    let k_first = group.z % p.splits * p.part;
    let k_end = min(p.k, k_first + p.part);
    let row = lane / 64u * 4u * FRAGMENT;
    let col = lane / 32u % 2u * 4u * FRAGMENT;
    let own = lane / 32u * FRAGMENT * FRAGMENT;
    for (var i = lane; i < 4u * FRAGMENT * FRAGMENT; i += INVOCATIONS) { finished[i] = 0.0; }
    workgroupBarrier();
    var s00 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s01 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s02 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s03 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s10 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s11 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s12 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s13 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s20 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s21 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s22 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s23 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s30 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s31 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s32 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s33 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    for (var k = k_first; k < k_end; k += DEPTH) {
        let a0 = fetch_a(lane, 0u, batch, first.x, k, k_end);
        let b0 = fetch_b(lane, 0u, batch, first.y, k, k_end);
        let a1 = fetch_a(lane, 1u, batch, first.x, k, k_end);
        let b1 = fetch_b(lane, 1u, batch, first.y, k, k_end);
        let a2 = fetch_a(lane, 2u, batch, first.x, k, k_end);
        let b2 = fetch_b(lane, 2u, batch, first.y, k, k_end);
        let a3 = fetch_a(lane, 3u, batch, first.x, k, k_end);
        let b3 = fetch_b(lane, 3u, batch, first.y, k, k_end);
        workgroupBarrier();
        put_a(slot(lane, 0u, ACROSS_A, LINE_A), a0);
        put_b(slot(lane, 0u, ACROSS_B, LINE_B), b0);
        put_a(slot(lane, 1u, ACROSS_A, LINE_A), a1);
        put_b(slot(lane, 1u, ACROSS_B, LINE_B), b1);
        put_a(slot(lane, 2u, ACROSS_A, LINE_A), a2);
        put_b(slot(lane, 2u, ACROSS_B, LINE_B), b2);
        put_a(slot(lane, 3u, ACROSS_A, LINE_A), a3);
        put_b(slot(lane, 3u, ACROSS_B, LINE_B), b3);
        workgroupBarrier();
        for (var i = 0u; i < DEPTH; i += FRAGMENT) {
            let y0 = right(col + 0u * FRAGMENT, i);
            let y1 = right(col + 1u * FRAGMENT, i);
            let y2 = right(col + 2u * FRAGMENT, i);
            let y3 = right(col + 3u * FRAGMENT, i);
            let x0 = left(row + 0u * FRAGMENT, i);
            s00 = coopMultiplyAdd(x0, y0, s00);
            s01 = coopMultiplyAdd(x0, y1, s01);
            s02 = coopMultiplyAdd(x0, y2, s02);
            s03 = coopMultiplyAdd(x0, y3, s03);
            let x1 = left(row + 1u * FRAGMENT, i);
            s10 = coopMultiplyAdd(x1, y0, s10);
            s11 = coopMultiplyAdd(x1, y1, s11);
            s12 = coopMultiplyAdd(x1, y2, s12);
            s13 = coopMultiplyAdd(x1, y3, s13);
            let x2 = left(row + 2u * FRAGMENT, i);
            s20 = coopMultiplyAdd(x2, y0, s20);
            s21 = coopMultiplyAdd(x2, y1, s21);
            s22 = coopMultiplyAdd(x2, y2, s22);
            s23 = coopMultiplyAdd(x2, y3, s23);
            let x3 = left(row + 3u * FRAGMENT, i);
            s30 = coopMultiplyAdd(x3, y0, s30);
            s31 = coopMultiplyAdd(x3, y1, s31);
            s32 = coopMultiplyAdd(x3, y2, s32);
            s33 = coopMultiplyAdd(x3, y3, s33);
        }
    }
    let at = first + vec2<u32>(row, col);
    coopStoreT(s00, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + 0u * FRAGMENT, at.y + 0u * FRAGMENT);
    coopStoreT(s01, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + 0u * FRAGMENT, at.y + 1u * FRAGMENT);
    coopStoreT(s02, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + 0u * FRAGMENT, at.y + 2u * FRAGMENT);
    coopStoreT(s03, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + 0u * FRAGMENT, at.y + 3u * FRAGMENT);
    coopStoreT(s10, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + 1u * FRAGMENT, at.y + 0u * FRAGMENT);
    coopStoreT(s11, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + 1u * FRAGMENT, at.y + 1u * FRAGMENT);
    coopStoreT(s12, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + 1u * FRAGMENT, at.y + 2u * FRAGMENT);
    coopStoreT(s13, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + 1u * FRAGMENT, at.y + 3u * FRAGMENT);
    coopStoreT(s20, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + 2u * FRAGMENT, at.y + 0u * FRAGMENT);
    coopStoreT(s21, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + 2u * FRAGMENT, at.y + 1u * FRAGMENT);
    coopStoreT(s22, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + 2u * FRAGMENT, at.y + 2u * FRAGMENT);
    coopStoreT(s23, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + 2u * FRAGMENT, at.y + 3u * FRAGMENT);
    coopStoreT(s30, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + 3u * FRAGMENT, at.y + 0u * FRAGMENT);
    coopStoreT(s31, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + 3u * FRAGMENT, at.y + 1u * FRAGMENT);
    coopStoreT(s32, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + 3u * FRAGMENT, at.y + 2u * FRAGMENT);
    coopStoreT(s33, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + 3u * FRAGMENT, at.y + 3u * FRAGMENT);
}
