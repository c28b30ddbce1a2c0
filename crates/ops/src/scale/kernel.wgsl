fn value(x: vec4<f32>) -> vec4<f32> { return x * p.number; }
fn slope(x: vec4<f32>) -> vec4<f32> { return vec4<f32>(p.number); }
