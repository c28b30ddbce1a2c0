alias NAME4 = vec4<f32>;
fn widen_NAME(x: NAME4) -> vec4<f32> { return x; }
fn narrow_NAME(x: vec4<f32>) -> NAME4 { return x; }
