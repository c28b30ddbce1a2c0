@group(0) @binding(0) var<storage, read_write> out: array<f32>;
fn put_out(base: u32, col: u32, x: vec4<f32>) {
    for (var i = 0u; i < min(4u, p.width - col); i++) { out[base + col + i] = x[i]; }
}
