// LANES invocations of a workgroup of WG share a row; each keeps up to KEEP units of it in registers.
const ROWS = WG / LANES;

// where a workgroup has several rows
fn part_sum(x: f32, lane: Lane) -> f32 {
    workgroupBarrier();
    partial[lane.index] = x;
    workgroupBarrier();
    let first = lane.index / LANES * LANES;
    var sum = partial[first];
    for (var i = 1u; i < LANES; i++) { sum += partial[first + i]; }
    return sum;
}

fn row_sum(x: f32, lane: Lane) -> f32 {
    if LANES == WG { return group_sum(x, lane); }
    return part_sum(x, lane);
}
