// One workgroup a tile of 64 × 64 results; an invocation sums 4 × 4 of them.
@compute @workgroup_size(256)
fn tile(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = vec2<u32>(group.y, group.x) * TILE;
    let batch = group.z / p.splits;
    let k_first = group.z % p.splits * p.part;
    let k_end = min(p.k, k_first + p.part);
    let own = vec2<u32>(lane / 16u, lane % 16u);
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    var next = fetch(lane, batch, first, k_first, k_end);
    for (var k = k_first; k < k_end; k += DEPTH) {
        workgroupBarrier();
        put(lane, next);
        workgroupBarrier();
        // on its way while the tile is multiplied
        if k + DEPTH < k_end { next = fetch(lane, batch, first, k + DEPTH, k_end); }
        for (var i = 0u; i < DEPTH; i++) {
            let x = tile_a[i * (TILE / 4u) + own.x];
            let y = tile_b[i * (TILE / 4u) + own.y];
            s0 = fma(vec4<f32>(x.x), y, s0);
            s1 = fma(vec4<f32>(x.y), y, s1);
            s2 = fma(vec4<f32>(x.z), y, s2);
            s3 = fma(vec4<f32>(x.w), y, s3);
        }
    }
    let row = first.x + 4u * own.x;
    let col = first.y + 4u * own.y;
    put_c(group.z, row, col, s0);
    put_c(group.z, row + 1u, col, s1);
    put_c(group.z, row + 2u, col, s2);
    put_c(group.z, row + 3u, col, s3);
}
