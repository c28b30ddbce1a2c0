// Any number of taps: each row reads the inputs of its taps again.
@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let columns = (p.width + WORKGROUP - 1u) / WORKGROUP;
    let i = group_index(group, groups);
    let channel = i % columns * WORKGROUP + lane;
    if i / columns >= p.runs || channel >= p.width { return; }
    let run = run_at(i / columns);
    for (var row = run.first; row < run.end; row++) {
        y[place(row, channel)] = narrow(activated(sum_at(run, row, channel)));
    }
}

// y holds the gradients to the sums, which the entries below take as `dy`
@compute @workgroup_size(WORKGROUP)
fn sums_gradient(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let columns = (p.width + WORKGROUP - 1u) / WORKGROUP;
    let i = group_index(group, groups);
    let channel = i % columns * WORKGROUP + lane;
    if i / columns >= p.runs || channel >= p.width { return; }
    let run = run_at(i / columns);
    for (var row = run.first; row < run.end; row++) { y[place(row, channel)] = narrow(dz_at(run, row, channel)); }
}

@compute @workgroup_size(WORKGROUP)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let columns = (p.width + WORKGROUP - 1u) / WORKGROUP;
    let i = group_index(group, groups);
    let part = i / columns;
    let channel = i % columns * WORKGROUP + lane;
    if part * p.each >= p.runs || channel >= p.width { return; }
    let end = min((part + 1u) * p.each, p.runs);
    for (var k = 0; k <= BEFORE && DW == 1u; k++) {
        var dtap = Num(0.0);
        for (var number = part * p.each; number < end; number++) {
            let run = run_at(number);
            for (var row = run.first; row < run.end; row++) {
                dtap += input(run, row + k - BEFORE, channel) * dz_at(run, row, channel);
            }
        }
        leave(part * p.stride, channel, u32(k), dtap);
    }
    if DX == 0u { return; }
    for (var number = part * p.each; number < end; number++) {
        let run = run_at(number);
        for (var row = run.first; row < run.end; row++) {
            y[place(row, channel)] = narrow(dinput_at(run, row, channel));
        }
    }
}
