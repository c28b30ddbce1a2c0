@group(0) @binding(4) var<storage, read_write> out: array<f32>;
fn put(row: u32, at: u32, x: vec4<f32>) {
    for (var i = 0u; i < min(4u, p.words - at); i++) { out[row * p.words + at + i] = x[i]; }
}
