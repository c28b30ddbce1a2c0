// Element `j` of four.
const UNIT: u32 = 4u;
fn element(x: Num, j: u32) -> f32 { return x[j]; }
fn silu_of(x: Num) -> Num { return silu4(x); }
fn gather(x: vec4<f32>) -> Num { return x; }
