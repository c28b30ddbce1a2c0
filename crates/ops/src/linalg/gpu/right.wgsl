// The right side of a product: four elements from any element on.
@group(0) @binding(1) var<storage, read> b: array<B4>;

fn load_b(at: u32) -> vec4<f32> {
    let i = at / 4u;
    if B_ODD == 0u { return widen_B(b[i]); }
    return shifted(widen_B(b[i]), widen_B(b[min(i + 1u, arrayLength(&b) - 1u)]), at % 4u);
}
