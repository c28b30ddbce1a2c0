// Reductions over a workgroup of WG invocations. Every invocation calls them and gets the result.
struct Lane {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_invocation_id) place: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
}
var<workgroup> partial: array<f32, WG>;

fn group_sum(x: f32, lane: Lane) -> f32 {
    let sum = subgroupAdd(x);
    workgroupBarrier();
    if lane.place == 0u { partial[lane.subgroup] = sum; }
    workgroupBarrier();
    var total = partial[0];
    for (var i = 1u; i < lane.subgroups; i++) { total += partial[i]; }
    return total;
}

fn group_max(x: f32, lane: Lane) -> f32 {
    let most = subgroupMax(x);
    workgroupBarrier();
    if lane.place == 0u { partial[lane.subgroup] = most; }
    workgroupBarrier();
    var total = partial[0];
    for (var i = 1u; i < lane.subgroups; i++) { total = max(total, partial[i]); }
    return total;
}
