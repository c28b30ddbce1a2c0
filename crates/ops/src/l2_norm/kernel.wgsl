@group(0) @binding(3) var<storage, read> dy: array<Stored>;

fn gain(column: u32, at: u32) -> Gain { return Gain(Num(1.0), Num(1.0), Num(0.0)); }

// y holds the gradient to x
@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, lane: Lane) {
    let first = group_index(group, groups) * ROWS;
    if first >= p.rows { return; }
    let row = first + lane.index / LANES;
    let place = lane.index % LANES;
    let width = select(0u, p.width, row < p.rows);
    let base = row * p.width;
    var inputs: array<Num, KEEP>;
    var derivatives: array<Num, KEEP>;
    var dots = Num(0.0);
    for (var k = 0u; k < KEEP; k++) {
        let column = k * LANES + place;
        inputs[k] = Num(0.0);
        derivatives[k] = Num(0.0);
        if column < width {
            inputs[k] = widen(x[base + column]);
            derivatives[k] = widen(dy[base + column]);
        }
        dots += inputs[k] * derivatives[k];
    }
    for (var column = KEEP * LANES + place; column < width; column += LANES) {
        dots += widen(x[base + column]) * widen(dy[base + column]);
    }
    var scale = 0.0;
    if row < p.rows { scale = scales[row]; }
    let shrink = row_sum(total(dots), lane) * scale * scale;
    for (var k = 0u; k < KEEP; k++) {
        let column = k * LANES + place;
        if column < width { y[base + column] = narrow(scale * (derivatives[k] - inputs[k] * shrink)); }
    }
    for (var column = KEEP * LANES + place; column < width; column += LANES) {
        y[base + column] = narrow(scale * (widen(dy[base + column]) - widen(x[base + column]) * shrink));
    }
}
