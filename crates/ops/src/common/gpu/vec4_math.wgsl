struct Gate { value: Num, derivative: Num }
fn silu(x: Num) -> Num { return silu4(x); }
fn silu_and_derivative(x: Num) -> Gate {
    let both = silu_and_derivative4(x);
    return Gate(both.value, both.derivative);
}
