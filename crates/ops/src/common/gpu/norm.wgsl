// Normalization of rows. The operation's text defines gain(column, at), the factor of a normalized element.
// For the gradients: `each` rows per workgroup, whose sums are row `first` + workgroup with `stride` elements.
struct Params { rows: u32, width: u32, share: f32, eps: f32, each: u32, first: u32, stride: u32 }
struct Gain { all: Num, gate: Num, derivative: Num }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<Stored>;
@group(0) @binding(1) var<storage, read_write> y: array<Stored>;
@group(0) @binding(2) var<storage, read_write> scales: array<f32>;

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, lane: Lane) {
    let first = group_index(group, groups) * ROWS;
    if first >= p.rows { return; }
    let row = first + lane.index / LANES;
    let place = lane.index % LANES;
    let width = select(0u, p.width, row < p.rows);
    let base = row * p.width;
    var kept: array<Num, KEEP>;
    var squares = 0.0;
    for (var k = 0u; k < KEEP; k++) {
        let column = k * LANES + place;
        kept[k] = Num(0.0);
        if column < width { kept[k] = widen(x[base + column]); }
        squares += total(kept[k] * kept[k]);
    }
    for (var column = KEEP * LANES + place; column < width; column += LANES) {
        let value = widen(x[base + column]);
        squares += total(value * value);
    }
    let scale = inverseSqrt(row_sum(squares, lane) * p.share + p.eps);
    for (var k = 0u; k < KEEP; k++) {
        let column = k * LANES + place;
        if column < width { y[base + column] = narrow(kept[k] * scale * gain(column, base + column).all); }
    }
    for (var column = KEEP * LANES + place; column < width; column += LANES) {
        y[base + column] = narrow(widen(x[base + column]) * scale * gain(column, base + column).all);
    }
    if place == 0u && row < p.rows { scales[row] = scale; }
}
