// Sums of rows. Each row is cut into `parts` of `each` units; LANES invocations sum a part. Results start at
// `y[first]`.
struct Params { rows: u32, width: u32, parts: u32, each: u32, first: u32, factor: f32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<Stored>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, lane: Lane) {
    let first = group_index(group, groups) * ROWS;
    if first >= p.rows * p.parts { return; }
    let number = first + lane.index / LANES;
    let row = number / p.parts;
    let base = row * p.width;
    let start = base + number % p.parts * p.each;
    let end = select(0u, base + min((number % p.parts + 1u) * p.each, p.width), row < p.rows);
    var sum = Num(0.0);
    // four independent reads in flight
    for (var i = start + lane.index % LANES; i < end; i += 4u * LANES) {
        var read: array<Num, 4>;
        for (var k = 0u; k < 4u; k++) {
            read[k] = Num(0.0);
            if i + k * LANES < end { read[k] = widen(x[i + k * LANES]); }
        }
        sum += (read[0] + read[1]) + (read[2] + read[3]);
    }
    let whole = row_sum(total(sum), lane) * p.factor;
    if lane.index % LANES == 0u && row < p.rows { y[p.first + number] = whole; }
}
