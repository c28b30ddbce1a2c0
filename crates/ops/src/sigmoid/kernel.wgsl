fn value(x: vec4<f32>) -> vec4<f32> { return sigmoid4(x); }
fn slope(x: vec4<f32>) -> vec4<f32> { return sigmoid4(x) * sigmoid4(-x); }
