// Results of few lines that begin anywhere; `part` is how far apart those of the many lines are.
@group(0) @binding(C_AT) var<storage, read_write> c: array<f32>;

fn put_few(batch: u32, line: u32, n: u32, x: vec4<f32>) {
    let total = p.alpha * x;
    for (var i = 0u; i < 4u; i++) {
        if n + i < p.n {
            let at = p.c_at + batch * p.c_batch + line * p.c_stride + (n + i) * p.part;
            c[at] = total[i] + select(0.0, p.beta * c[at], p.beta != 0.0);
        }
    }
}
