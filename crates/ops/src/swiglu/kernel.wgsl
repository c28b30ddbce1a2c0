fn value(gate: vec4<f32>, up: vec4<f32>) -> vec4<f32> { return silu4(gate) * up; }
fn slopes(gate: vec4<f32>, up: vec4<f32>) -> Slopes {
    let s = silu_with_slope4(gate);
    return Slopes(up * s.slope, s.value);
}
