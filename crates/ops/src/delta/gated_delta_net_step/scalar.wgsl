// The element itself.
const UNIT: u32 = 1u;
fn element(x: Num, j: u32) -> f32 { return x; }
fn silu_of(x: Num) -> Num { return silu4(vec4<f32>(x)).x; }
fn gather(x: vec4<f32>) -> Num { return x.x; }
