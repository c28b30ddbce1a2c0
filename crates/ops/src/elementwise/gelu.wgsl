// beyond this the tail is 0; an infinity times that 0 would be NaN
const BOUND: f32 = 40.0;

// 1 - Phi(x) for x >= 0
fn tail(x: vec4<f32>) -> vec4<f32> { return 0.5 * erfc4(x * 0.70710678); }

// x * Phi(x) from the tail alone, so that nothing cancels where it is small
fn gelu(x: vec4<f32>) -> vec4<f32> {
    let size = abs(x);
    return max(x, vec4<f32>(0.0)) - min(size, vec4<f32>(BOUND)) * tail(size);
}

fn gelu_derivative(x: vec4<f32>) -> vec4<f32> {
    let near = clamp(x, vec4<f32>(-BOUND), vec4<f32>(BOUND));
    let density = exp4(near * near * -0.5) * 0.3989423;
    return 0.5 + sign(near) * (0.5 - tail(abs(near))) + near * density;
}
