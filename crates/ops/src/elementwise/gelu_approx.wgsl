// beyond this the share is 0 or 1; an infinity times that 0 would be NaN
const BOUND: f32 = 40.0;
// twice the root of 2 / pi
const OUTER: f32 = 1.5957692;
const CUBE: f32 = 0.044715;

fn bounded(x: vec4<f32>) -> vec4<f32> { return clamp(x, vec4<f32>(-BOUND), vec4<f32>(BOUND)); }
// (1 + tanh(u)) / 2
fn share(x: vec4<f32>) -> vec4<f32> { return sigmoid4(OUTER * x * (1.0 + CUBE * x * x)); }

fn gelu_approx(x: vec4<f32>) -> vec4<f32> { return max(x, vec4<f32>(-BOUND)) * share(bounded(x)); }
fn gelu_approx_derivative(x: vec4<f32>) -> vec4<f32> {
    let at = bounded(x);
    let s = share(at);
    return s + at * s * (1.0 - s) * OUTER * (1.0 + 3.0 * CUBE * at * at);
}
