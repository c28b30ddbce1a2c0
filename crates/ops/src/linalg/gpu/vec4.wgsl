// Results whose lines begin at whole vec4s.
@group(0) @binding(C_AT) var<storage, read_write> c: array<C4>;

fn put_c(batch: u32, row: u32, col: u32, x: vec4<f32>) {
    if row >= p.m || col >= p.n { return; }
    let i = (p.c_at + batch * p.c_batch + row * p.c_stride + col) / 4u;
    var y = p.alpha * x;
    if p.beta != 0.0 { y += p.beta * widen_C(c[i]); }
    c[i] = narrow_C(y);
}
