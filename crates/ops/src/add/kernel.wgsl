fn value(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> { return a + b; }
fn slopes(a: vec4<f32>, b: vec4<f32>) -> Slopes { return Slopes(vec4<f32>(1.0), vec4<f32>(1.0)); }
