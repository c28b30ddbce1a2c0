// The right side of a product, quantized: four elements from any element on whose place is a multiple of 4.
fn load_b(at: u32) -> vec4<f32> {
    let group = at / GROUP;
    return quad(at / 4u) * scale(group) + bias(group);
}
