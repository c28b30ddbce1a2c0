// One workgroup per tile of 128 × 128 results; an invocation sums 8 × 8 of them, in four blocks of 4 × 4 that lie 64
// apart, so that neighbours read neighbouring vec4s.
@compute @workgroup_size(256)
fn tile(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = vec2<u32>(group.y, group.x) * TILE;
    let batch = group.z / p.splits;
    let k_first = group.z % p.splits * p.part;
    let k_end = min(p.k, k_first + p.part);
    let own = vec2<u32>(lane / 16u, lane % 16u);
    var s0 = vec4<f32>(0.0);
    var t0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var t1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var t2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    var t3 = vec4<f32>(0.0);
    var s4 = vec4<f32>(0.0);
    var t4 = vec4<f32>(0.0);
    var s5 = vec4<f32>(0.0);
    var t5 = vec4<f32>(0.0);
    var s6 = vec4<f32>(0.0);
    var t6 = vec4<f32>(0.0);
    var s7 = vec4<f32>(0.0);
    var t7 = vec4<f32>(0.0);
    var next = fetch(lane, batch, first, k_first, k_end);
    for (var k = k_first; k < k_end; k += DEPTH) {
        workgroupBarrier();
        put(lane, next);
        workgroupBarrier();
        // in flight while the tile is multiplied
        if k + DEPTH < k_end { next = fetch(lane, batch, first, k + DEPTH, k_end); }
        for (var i = 0u; i < DEPTH; i++) {
            let x = tile_a[i * (TILE / 4u) + own.x];
            let u = tile_a[i * (TILE / 4u) + own.x + 16u];
            let y = tile_b[i * (TILE / 4u) + own.y];
            let v = tile_b[i * (TILE / 4u) + own.y + 16u];
            s0 = fma(vec4<f32>(x.x), y, s0);
            t0 = fma(vec4<f32>(x.x), v, t0);
            s1 = fma(vec4<f32>(x.y), y, s1);
            t1 = fma(vec4<f32>(x.y), v, t1);
            s2 = fma(vec4<f32>(x.z), y, s2);
            t2 = fma(vec4<f32>(x.z), v, t2);
            s3 = fma(vec4<f32>(x.w), y, s3);
            t3 = fma(vec4<f32>(x.w), v, t3);
            s4 = fma(vec4<f32>(u.x), y, s4);
            t4 = fma(vec4<f32>(u.x), v, t4);
            s5 = fma(vec4<f32>(u.y), y, s5);
            t5 = fma(vec4<f32>(u.y), v, t5);
            s6 = fma(vec4<f32>(u.z), y, s6);
            t6 = fma(vec4<f32>(u.z), v, t6);
            s7 = fma(vec4<f32>(u.w), y, s7);
            t7 = fma(vec4<f32>(u.w), v, t7);
        }
    }
    let row = first.x + 4u * own.x;
    let col = first.y + 4u * own.y;
    put_c(group.z, row, col, s0);
    put_c(group.z, row, col + 64u, t0);
    put_c(group.z, row + 1u, col, s1);
    put_c(group.z, row + 1u, col + 64u, t1);
    put_c(group.z, row + 2u, col, s2);
    put_c(group.z, row + 2u, col + 64u, t2);
    put_c(group.z, row + 3u, col, s3);
    put_c(group.z, row + 3u, col + 64u, t3);
    put_c(group.z, row + 64u, col, s4);
    put_c(group.z, row + 64u, col + 64u, t4);
    put_c(group.z, row + 65u, col, s5);
    put_c(group.z, row + 65u, col + 64u, t5);
    put_c(group.z, row + 66u, col, s6);
    put_c(group.z, row + 66u, col + 64u, t6);
    put_c(group.z, row + 67u, col, s7);
    put_c(group.z, row + 67u, col + 64u, t7);
}
