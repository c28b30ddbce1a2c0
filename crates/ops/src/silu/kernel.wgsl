fn value(x: vec4<f32>) -> vec4<f32> { return silu4(x); }
fn slope(x: vec4<f32>) -> vec4<f32> { return silu_with_slope4(x).slope; }
