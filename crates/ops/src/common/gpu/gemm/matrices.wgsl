// needs cooperative matrices
// One workgroup a tile of 8 × 8 fragments: each of its eight subgroups of 32 has 4 × 2 of them. Both sides lie in shared
// memory as they lie outside, so that nothing is turned.
const TILE: u32 = 8u * FRAGMENT;
const DEPTH: u32 = 32u;
// numbers of a line of each tile, and of a line with what keeps neighbours in different banks
const ACROSS_A: u32 = select(TILE, DEPTH, A_K_INNER == 1u);
const ACROSS_B: u32 = select(TILE, DEPTH, B_K_INNER == 1u);
const LINE_A: u32 = (ACROSS_A + UNIT) / ELEMENT;
const LINE_B: u32 = (ACROSS_B + UNIT) / ELEMENT;
var<workgroup> finished: array<f32, 8u * FRAGMENT * FRAGMENT>;

// the line of a tile and the number in it of each of the two units that an invocation brings
fn place(lane: u32, half: u32, across: u32) -> vec2<u32> {
    let i = lane + 256u * half;
    return vec2<u32>(i / (across / UNIT), i % (across / UNIT) * UNIT);
}

fn fetch_a(lane: u32, half: u32, batch: u32, row: u32, k: u32, k_end: u32) -> Unit {
    let base = p.a_at + batch * p.a_batch;
    let own = place(lane, half, ACROSS_A);
    if A_K_INNER == 1u {
        let line = row + own.x;
        let inside = line < p.m && k + own.y < k_end;
        return unit_a(select(0u, base + line * p.a_stride + k + own.y, inside), k + own.y, select(0u, k_end, inside));
    }
    let line = k + own.x;
    let inside = line < k_end && row + own.y < p.m;
    return unit_a(select(0u, base + line * p.a_stride + row + own.y, inside), row + own.y, select(0u, p.m, inside));
}

fn fetch_b(lane: u32, half: u32, batch: u32, col: u32, k: u32, k_end: u32) -> Unit {
    let base = p.b_at + batch * p.b_batch;
    let own = place(lane, half, ACROSS_B);
    if B_K_INNER == 1u {
        let line = col + own.x;
        let inside = line < p.n && k + own.y < k_end;
        return unit_b(select(0u, base + line * p.b_stride + k + own.y, inside), k + own.y, select(0u, k_end, inside));
    }
    let line = k + own.x;
    let inside = line < k_end && col + own.y < p.n;
    return unit_b(select(0u, base + line * p.b_stride + col + own.y, inside), col + own.y, select(0u, p.n, inside));
}

fn slot_a(lane: u32, half: u32) -> u32 {
    let own = place(lane, half, ACROSS_A);
    return own.x * LINE_A + own.y / ELEMENT;
}

fn slot_b(lane: u32, half: u32) -> u32 {
    let own = place(lane, half, ACROSS_B);
    return own.x * LINE_B + own.y / ELEMENT;
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

@compute @workgroup_size(256)
fn tile(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = vec2<u32>(group.y, group.x) * TILE;
    let batch = group.z / p.splits;
    let k_first = group.z % p.splits * p.part;
    let k_end = min(p.k, k_first + p.part);
    let row = lane / 128u * 4u * FRAGMENT;
    let col = lane / 32u % 4u * 2u * FRAGMENT;
    let own = lane / 32u * FRAGMENT * FRAGMENT;
    for (var i = lane; i < 8u * FRAGMENT * FRAGMENT; i += 256u) { finished[i] = 0.0; }
    workgroupBarrier();
    var s00 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s01 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s10 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s11 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s20 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s21 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s30 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var s31 = coopLoadT<Sums>(&finished[own], FRAGMENT);
    var a0 = fetch_a(lane, 0u, batch, first.x, k_first, k_end);
    var a1 = fetch_a(lane, 1u, batch, first.x, k_first, k_end);
    var b0 = fetch_b(lane, 0u, batch, first.y, k_first, k_end);
    var b1 = fetch_b(lane, 1u, batch, first.y, k_first, k_end);
    for (var k = k_first; k < k_end; k += DEPTH) {
        workgroupBarrier();
        put_a(slot_a(lane, 0u), a0);
        put_a(slot_a(lane, 1u), a1);
        put_b(slot_b(lane, 0u), b0);
        put_b(slot_b(lane, 1u), b1);
        workgroupBarrier();
        // on its way while the tile is multiplied
        if k + DEPTH < k_end {
            a0 = fetch_a(lane, 0u, batch, first.x, k + DEPTH, k_end);
            a1 = fetch_a(lane, 1u, batch, first.x, k + DEPTH, k_end);
            b0 = fetch_b(lane, 0u, batch, first.y, k + DEPTH, k_end);
            b1 = fetch_b(lane, 1u, batch, first.y, k + DEPTH, k_end);
        }
        for (var i = 0u; i < DEPTH; i += FRAGMENT) {
            let y0 = right(col, i);
            let y1 = right(col + FRAGMENT, i);
            let x0 = left(row, i);
            let x1 = left(row + FRAGMENT, i);
            let x2 = left(row + 2u * FRAGMENT, i);
            let x3 = left(row + 3u * FRAGMENT, i);
            s00 = coopMultiplyAdd(x0, y0, s00);
            s01 = coopMultiplyAdd(x0, y1, s01);
            s10 = coopMultiplyAdd(x1, y0, s10);
            s11 = coopMultiplyAdd(x1, y1, s11);
            s20 = coopMultiplyAdd(x2, y0, s20);
            s21 = coopMultiplyAdd(x2, y1, s21);
            s30 = coopMultiplyAdd(x3, y0, s30);
            s31 = coopMultiplyAdd(x3, y1, s31);
        }
    }
    let at = first + vec2<u32>(row, col);
    coopStoreT(s00, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x, at.y);
    coopStoreT(s01, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x, at.y + FRAGMENT);
    coopStoreT(s10, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + FRAGMENT, at.y);
    coopStoreT(s11, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + FRAGMENT, at.y + FRAGMENT);
    coopStoreT(s20, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + 2u * FRAGMENT, at.y);
    coopStoreT(s21, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + 2u * FRAGMENT, at.y + FRAGMENT);
    coopStoreT(s30, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + 3u * FRAGMENT, at.y);
    coopStoreT(s31, &finished[own], FRAGMENT);
    finish(lane, group.z, at.x + 3u * FRAGMENT, at.y + FRAGMENT);
}
