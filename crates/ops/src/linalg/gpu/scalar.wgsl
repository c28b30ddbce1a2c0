// Results whose lines begin anywhere.
@group(0) @binding(C_AT) var<storage, read_write> c: array<f32>;

fn put1(i: u32, x: f32) {
    var y = p.alpha * x;
    if p.beta != 0.0 { y += p.beta * c[i]; }
    c[i] = y;
}

fn put_c(batch: u32, row: u32, col: u32, x: vec4<f32>) {
    if row >= p.m { return; }
    let i = p.c_at + batch * p.c_batch + row * p.c_stride + col;
    if col < p.n { put1(i, x.x); }
    if col + 1u < p.n { put1(i + 1u, x.y); }
    if col + 2u < p.n { put1(i + 2u, x.z); }
    if col + 3u < p.n { put1(i + 3u, x.w); }
}
