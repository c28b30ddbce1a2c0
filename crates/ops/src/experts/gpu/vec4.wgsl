// Rows of results begin at whole vec4s.
@group(0) @binding(2) var<storage, read_write> c: array<C4>;

fn put_c(row: u32, col: u32, x: vec4<f32>) {
    if col < p.n { c[(row * p.n + col) / 4u] = narrow_C(x); }
}
