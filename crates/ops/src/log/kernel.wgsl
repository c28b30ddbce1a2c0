fn value(x: vec4<f32>) -> vec4<f32> { return log(x); }
fn slope(x: vec4<f32>) -> vec4<f32> { return 1.0 / x; }
