// The two sides of a product: four numbers from any element on, and 4 × 4 blocks of them for tiles.
@group(0) @binding(0) var<storage, read> a: array<A4>;
@group(0) @binding(1) var<storage, read> b: array<B4>;

// where lines do not begin at whole quads, four numbers lie in two
fn load_a(at: u32) -> vec4<f32> {
    let i = at / 4u;
    if A_ODD == 0u { return widen_A(a[i]); }
    return shifted(widen_A(a[i]), widen_A(a[min(i + 1u, arrayLength(&a) - 1u)]), at % 4u);
}

fn load_b(at: u32) -> vec4<f32> {
    let i = at / 4u;
    if B_ODD == 0u { return widen_B(b[i]); }
    return shifted(widen_B(b[i]), widen_B(b[min(i + 1u, arrayLength(&b) - 1u)]), at % 4u);
}
