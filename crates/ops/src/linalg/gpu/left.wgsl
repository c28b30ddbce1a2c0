// The left side of a product: four elements from any element on.
@group(0) @binding(0) var<storage, read> a: array<A4>;

// where lines do not begin at whole vec4s, four elements lie in two
fn load_a(at: u32) -> vec4<f32> {
    let i = at / 4u;
    if A_ODD == 0u { return widen_A(a[i]); }
    return shifted(widen_A(a[i]), widen_A(a[min(i + 1u, arrayLength(&a) - 1u)]), at % 4u);
}
