@group(0) @binding(3) var<storage, read> w: array<Stored>;
@group(0) @binding(4) var<storage, read> z: array<Stored>;
@group(0) @binding(5) var<storage, read> dy: array<Stored>;
@group(0) @binding(6) var<storage, read_write> sums: array<Num>;
@group(0) @binding(7) var<storage, read_write> dz: array<Stored>;

fn gain(column: u32, at: u32) -> Gain {
    let weight = widen(w[column]);
    let gate = silu_and_derivative(widen(z[at]));
    return Gain(weight * gate.value, gate.value, weight * gate.derivative);
}
fn finish(at: u32, d: Num, by: Gain) {
    if DZ == 1u { dz[at] = narrow(d * by.derivative); }
}
