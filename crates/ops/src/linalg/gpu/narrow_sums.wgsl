// The sums of 4 × 4 results of a tile of 64 × 64 that 256 invocations share.
struct Sums { x: vec4<f32>, y: vec4<f32>, z: vec4<f32>, w: vec4<f32> }

fn tile_sums(lane: u32, batch: u32, first: vec2<u32>, k_first: u32, k_end: u32) -> Sums {
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
        // in flight while the tile is multiplied
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
    return Sums(s0, s1, s2, s3);
}
