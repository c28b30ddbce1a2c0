// Single u32s, tile by tile through shared memory, so that both sides are read and written along their rows.
const SIDE = 32u;
var<workgroup> tile: array<u32, 1056>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let across = (p.columns + SIDE - 1u) / SIDE;
    let down = (p.rows + SIDE - 1u) / SIDE;
    let number = group_index(group, groups);
    let matrix = number / (across * down);
    let outer = matrix / p.middle;
    let middle = matrix % p.middle;
    if matrix >= p.count { return; }
    let first_row = number / across % down * SIDE;
    let first_column = number % across * SIDE;
    let fast = lane % SIDE;
    let slow = lane / SIDE;
    for (var i = slow; i < SIDE; i += 8u) {
        let row = first_row + i;
        let column = first_column + fast;
        if row < p.rows && column < p.columns {
            tile[i * 33u + fast] = x[((outer * p.rows + row) * p.middle + middle) * p.columns + column];
        }
    }
    workgroupBarrier();
    for (var i = slow; i < SIDE; i += 8u) {
        let row = first_row + fast;
        let column = first_column + i;
        if row < p.rows && column < p.columns {
            y[((outer * p.columns + column) * p.middle + middle) * p.rows + row] = tile[fast * 33u + i];
        }
    }
}
