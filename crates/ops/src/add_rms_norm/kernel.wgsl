// The sum of two rows and its norm: `kept` and, past it, `sum` hold the rounded sum that the norm is taken of.
struct Params { rows: u32, width: u32, share: f32, eps: f32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<Stored>;
@group(0) @binding(1) var<storage, read> r: array<Stored>;
@group(0) @binding(2) var<storage, read> w: array<Stored>;
@group(0) @binding(3) var<storage, read_write> sum: array<Stored>;
@group(0) @binding(4) var<storage, read_write> y: array<Stored>;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, lane: Lane) {
    let first = group_index(group, groups) * ROWS;
    if first >= p.rows { return; }
    let row = first + lane.index / LANES;
    let place = lane.index % LANES;
    let width = select(0u, p.width, row < p.rows);
    let base = row * p.width;
    var kept: array<Num, KEEP>;
    // weights that are read before the sum is known need not be waited for after it
    var weights: array<Num, KEEP>;
    var squares = 0.0;
    for (var k = 0u; k < KEEP; k++) {
        let column = k * LANES + place;
        kept[k] = Num(0.0);
        if column < width {
            let rounded = narrow(widen(x[base + column]) + widen(r[base + column]));
            sum[base + column] = rounded;
            kept[k] = widen(rounded);
            weights[k] = widen(w[column]);
        }
        squares += total(kept[k] * kept[k]);
    }
    for (var column = KEEP * LANES + place; column < width; column += LANES) {
        let rounded = narrow(widen(x[base + column]) + widen(r[base + column]));
        sum[base + column] = rounded;
        squares += total(widen(rounded) * widen(rounded));
    }
    let scale = inverseSqrt(row_sum(squares, lane) * p.share + p.eps);
    for (var k = 0u; k < KEEP; k++) {
        let column = k * LANES + place;
        if column < width { y[base + column] = narrow(kept[k] * scale * weights[k]); }
    }
    for (var column = KEEP * LANES + place; column < width; column += LANES) {
        y[base + column] = narrow(widen(sum[base + column]) * scale * widen(w[column]));
    }
}
