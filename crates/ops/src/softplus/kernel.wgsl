fn value(x: vec4<f32>) -> vec4<f32> { return softplus4(x); }
fn slope(x: vec4<f32>) -> vec4<f32> { return sigmoid4(x); }
