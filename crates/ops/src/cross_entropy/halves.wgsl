// the gradient as the sum of two numbers in half precision, up to 2^-17 of itself: its rounding, and what that leaves
@group(0) @binding(4) var<storage, read_write> high: array<X4>;
@group(0) @binding(5) var<storage, read_write> low: array<X4>;

fn keep(at: u32, gradient: vec4<f32>) {
    let rounded = narrow_X(gradient);
    high[at] = rounded;
    low[at] = narrow_X(gradient - widen_X(rounded));
}
