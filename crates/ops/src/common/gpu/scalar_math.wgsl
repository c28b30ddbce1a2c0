struct Gate { value: Num, derivative: Num }
fn silu(x: Num) -> Num { return silu4(vec4<f32>(x)).x; }
fn silu_and_derivative(x: Num) -> Gate {
    let both = silu_and_derivative4(vec4<f32>(x));
    return Gate(both.value.x, both.derivative.x);
}
