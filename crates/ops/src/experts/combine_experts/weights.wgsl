// The gradient of each choice's weight: the product of its row with that of the token. A row has LANES invocations.
struct Params { count: u32, width: u32, choices: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> y: array<Stored>;
@group(0) @binding(1) var<storage, read> dz: array<Stored>;
@group(0) @binding(2) var<storage, read_write> dw: array<f32>;

@compute @workgroup_size(WG)
fn to_weights(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, lane: Lane) {
    let first = group_index(group, groups) * ROWS;
    if first >= p.count { return; }
    let row = first + lane.index / LANES;
    let own = row * p.width;
    let token = row / p.choices * p.width;
    var sum = Num(0.0);
    if row < p.count {
        for (var i = lane.index % LANES; i < p.width; i += LANES) { sum += widen(y[own + i]) * widen(dz[token + i]); }
    }
    let whole = row_sum(total(sum), lane);
    if lane.index % LANES == 0u && row < p.count { dw[row] = whole; }
}
