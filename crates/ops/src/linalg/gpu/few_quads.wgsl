fn put_few(batch: u32, line: u32, n: u32, x: vec4<f32>) { put_c(batch, line, n, x); }
