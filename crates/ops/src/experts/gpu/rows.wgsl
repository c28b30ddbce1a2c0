// The left side's lines are the rows of a job's choices; the right one's are those of an expert, or its columns.
@group(0) @binding(5) var<storage, read> order: array<u32>;
@group(0) @binding(6) var<storage, read> jobs: array<vec2<u32>>;
@group(0) @binding(7) var<storage, read> starts: array<u32>;
var<workgroup> rows: array<u32, TILE>;

fn line_a(expert: u32, outer: u32, inner: u32, k_end: u32) -> vec4<f32> {
    let row = rows[outer];
    if row == NONE || inner >= k_end { return vec4<f32>(0.0); }
    return until(load_a(row * p.stride + inner), inner, k_end);
}

fn line_b(expert: u32, outer: u32, inner: u32, k_end: u32) -> vec4<f32> {
    let outer_end = select(k_end, p.n, B_K_INNER == 1u);
    let inner_end = select(p.n, k_end, B_K_INNER == 1u);
    if outer >= outer_end || inner >= inner_end { return vec4<f32>(0.0); }
    return until(load_b((expert * p.outer + outer) * p.width + inner), inner, inner_end);
}
