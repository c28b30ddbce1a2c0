@group(0) @binding(0) var<storage, read_write> out: array<X4>;
fn put_out(base: u32, col: u32, x: vec4<f32>) { out[(base + col) / 4u] = narrow_X(x); }
