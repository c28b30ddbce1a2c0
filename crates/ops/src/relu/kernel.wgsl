fn value(x: vec4<f32>) -> vec4<f32> { return max(x, vec4<f32>(0.0)); }
fn slope(x: vec4<f32>) -> vec4<f32> { return select(vec4<f32>(0.0), vec4<f32>(1.0), x > vec4<f32>(0.0)); }
