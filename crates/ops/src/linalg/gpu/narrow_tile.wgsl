// One workgroup per tile.
@compute @workgroup_size(256)
fn tile(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = vec2<u32>(group.y, group.x) * TILE;
    let batch = group.z / p.splits;
    let k_first = group.z % p.splits * p.part;
    let k_end = min(p.k, k_first + p.part);
    let sums = tile_sums(lane, batch, first, k_first, k_end);
    let row = first.x + 4u * (lane / 16u);
    let col = first.y + 4u * (lane % 16u);
    put_c(group.z, row, col, sums.x);
    put_c(group.z, row + 1u, col, sums.y);
    put_c(group.z, row + 2u, col, sums.z);
    put_c(group.z, row + 3u, col, sums.w);
}
