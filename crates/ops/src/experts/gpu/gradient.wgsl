// The gradient of an expert's matrix: the products of its choices' rows on both sides, summed in order. One workgroup
// per tile; an expert that no token chose gets zeros.
@group(0) @binding(5) var<storage, read> order: array<u32>;
@group(0) @binding(7) var<storage, read> starts: array<u32>;

fn line_a(first: u32, outer: u32, inner: u32, k_end: u32) -> vec4<f32> {
    if outer >= k_end || inner >= p.outer { return vec4<f32>(0.0); }
    return until(load_a(order[first + outer] * p.outer + inner), inner, p.outer);
}

fn line_b(first: u32, outer: u32, inner: u32, k_end: u32) -> vec4<f32> {
    if outer >= k_end || inner >= p.n { return vec4<f32>(0.0); }
    return until(load_b(order[first + outer] / p.sharers * p.n + inner), inner, p.n);
}

fn put_row(expert: u32, row: u32, col: u32, x: vec4<f32>) {
    if row < p.outer { put_c(expert * p.outer + row, col, x); }
}

@compute @workgroup_size(256)
fn gradient(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    // `jobs` is the first expert here
    let first = starts[p.jobs + group.z];
    let count = starts[p.jobs + group.z + 1u] - first;
    let sums = tile_sums(lane, first, vec2<u32>(group.y, group.x) * TILE, 0u, count);
    let row = group.y * TILE + 4u * (lane / 16u);
    let col = group.x * TILE + 4u * (lane % 16u);
    put_row(group.z, row, col, sums.x);
    put_row(group.z, row + 1u, col, sums.y);
    put_row(group.z, row + 2u, col, sums.z);
    put_row(group.z, row + 3u, col, sums.w);
}
