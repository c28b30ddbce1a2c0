// Reductions over a workgroup of WG invocations. Every invocation calls them and gets the result.
struct Lane {
    @builtin(local_invocation_index) index: u32,
}
var<workgroup> partial: array<f32, WG>;

fn group_sum(x: f32, lane: Lane) -> f32 {
    workgroupBarrier();
    partial[lane.index] = x;
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane.index < half { partial[lane.index] += partial[lane.index + half]; }
    }
    workgroupBarrier();
    return partial[0];
}

fn group_max(x: f32, lane: Lane) -> f32 {
    workgroupBarrier();
    partial[lane.index] = x;
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane.index < half { partial[lane.index] = max(partial[lane.index], partial[lane.index + half]); }
    }
    workgroupBarrier();
    return partial[0];
}
