@group(0) @binding(4) var<storage, read_write> out: array<Y4>;
fn put(row: u32, at: u32, x: vec4<f32>) { out[(row * p.words + at) / 4u] = narrow_Y(x); }
