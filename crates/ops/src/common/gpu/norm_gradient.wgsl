// Gradients of normalized rows and of their weights: a workgroup takes `each` rows, one batch of ROWS after the other,
// and leaves one row of sums. The operation's text gives `dy`, `sums`, gain(column, at) and, for each element once,
// finish(at, d, gain) with d = dy · x · scale. DX, DW and DZ are 1 where the gradients to x, w and z are needed.
var<workgroup> combined: array<Num, WG>;

@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, lane: Lane) {
    let part = group_index(group, groups);
    let start = part * p.each;
    if start >= p.rows { return; }
    let end = min(start + p.each, p.rows);
    let place = lane.index % LANES;
    let rest = (p.first + part) * p.stride;
    var weights: array<Num, KEEP>;
    for (var k = 0u; k < KEEP; k++) { weights[k] = Num(0.0); }
    if DW == 1u {
        for (var column = KEEP * LANES + place; column < p.width; column += LANES) { sums[rest + column] = Num(0.0); }
    }

    for (var batch = start; batch < end; batch += ROWS) {
        let row = batch + lane.index / LANES;
        let width = select(0u, p.width, row < end);
        let base = row * p.width;
        var scale = 0.0;
        if row < end { scale = scales[row]; }
        var inputs: array<Num, KEEP>;
        var dy_gain: array<Num, KEEP>;
        var dots = Num(0.0);
        for (var k = 0u; k < KEEP; k++) {
            let column = k * LANES + place;
            inputs[k] = Num(0.0);
            dy_gain[k] = Num(0.0);
            if column < width {
                inputs[k] = widen(x[base + column]);
                dy_gain[k] = widen(dy[base + column]);
            }
        }
        for (var k = 0u; k < KEEP; k++) {
            let column = k * LANES + place;
            if column < width {
                let by = gain(column, base + column);
                let d = dy_gain[k] * inputs[k] * scale;
                finish(base + column, d, by);
                weights[k] += d * by.gate;
                dy_gain[k] *= by.all;
                dots += dy_gain[k] * inputs[k];
            }
        }
        for (var column = KEEP * LANES + place; column < width; column += LANES) {
            let by = gain(column, base + column);
            let value = widen(x[base + column]);
            let dy_gain = widen(dy[base + column]);
            let d = dy_gain * value * scale;
            finish(base + column, d, by);
            if DW == 1u { sums[rest + column] += d * by.gate; }
            dots += dy_gain * by.all * value;
        }
        if DX == 0u { continue; }
        let shrink = row_sum(total(dots), lane) * p.share * scale * scale;
        for (var k = 0u; k < KEEP; k++) {
            let column = k * LANES + place;
            if column < width { y[base + column] = narrow(scale * (dy_gain[k] - inputs[k] * shrink)); }
        }
        for (var column = KEEP * LANES + place; column < width; column += LANES) {
            let dy_gain = widen(dy[base + column]) * gain(column, base + column).all;
            y[base + column] = narrow(scale * (dy_gain - widen(x[base + column]) * shrink));
        }
    }

    if DW == 0u { return; }
    // rows of the same workgroup, in order
    for (var k = 0u; k < KEEP; k++) {
        let column = k * LANES + place;
        var sum = weights[k];
        if ROWS > 1u {
            workgroupBarrier();
            combined[lane.index] = sum;
            workgroupBarrier();
            sum = combined[place];
            for (var i = 1u; i < ROWS; i++) { sum += combined[i * LANES + place]; }
        }
        if lane.index < LANES && column < p.width { sums[rest + column] = sum; }
    }
}
