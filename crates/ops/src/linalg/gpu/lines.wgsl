// Four elements of a line of either side; zeros outside of the matrix and from `k_end` on.
fn line_a(batch: u32, outer: u32, inner: u32, k_end: u32) -> vec4<f32> {
    let at = p.a_at + batch * p.a_batch + outer * p.a_stride + inner;
    if EDGE == 0u { return load_a(at); }
    let outer_end = select(k_end, p.m, A_K_INNER == 1u);
    let inner_end = select(p.m, k_end, A_K_INNER == 1u);
    if outer >= outer_end || inner >= inner_end { return vec4<f32>(0.0); }
    return until(load_a(at), inner, inner_end);
}

fn line_b(batch: u32, outer: u32, inner: u32, k_end: u32) -> vec4<f32> {
    let at = p.b_at + batch * p.b_batch + outer * p.b_stride + inner;
    if EDGE == 0u { return load_b(at); }
    let outer_end = select(k_end, p.n, B_K_INNER == 1u);
    let inner_end = select(p.n, k_end, B_K_INNER == 1u);
    if outer >= outer_end || inner >= inner_end { return vec4<f32>(0.0); }
    return until(load_b(at), inner, inner_end);
}
