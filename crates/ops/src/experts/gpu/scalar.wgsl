// Rows of results begin anywhere.
@group(0) @binding(2) var<storage, read_write> c: array<f32>;

fn put_c(row: u32, col: u32, x: vec4<f32>) {
    let at = row * p.n + col;
    if col < p.n { c[at] = x.x; }
    if col + 1u < p.n { c[at + 1u] = x.y; }
    if col + 2u < p.n { c[at + 2u] = x.z; }
    if col + 3u < p.n { c[at + 3u] = x.w; }
}
