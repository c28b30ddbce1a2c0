// Few taps: a window of inputs slides through registers, STEP rows at a time so that several reads are in flight.
const STEP: i32 = 4;
const WINDOW = TAPS + 3u;

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let columns = (p.width + WORKGROUP - 1u) / WORKGROUP;
    let i = group_index(group, groups);
    let channel = i % columns * WORKGROUP + lane;
    if i / columns >= p.runs || channel >= p.width { return; }
    let run = run_at(i / columns);
    var taps: array<Num, TAPS>;
    for (var k = 0u; k < TAPS; k++) { taps[k] = tap(channel, k); }
    var seen: array<Num, WINDOW>;
    for (var k = 0; k < BEFORE; k++) { seen[k] = input(run, run.first + k - BEFORE, channel); }
    for (var row = run.first; row < run.end; row += STEP) {
        for (var j = 0; j < STEP; j++) {
            seen[BEFORE + j] = Num(0.0);
            if row + j < run.end { seen[BEFORE + j] = widen(x[place(row + j, channel)]); }
        }
        for (var j = 0; j < STEP; j++) {
            var z = Num(0.0);
            for (var k = 0; k <= BEFORE; k++) { z = fma(taps[k], seen[j + k], z); }
            if row + j < run.end { y[place(row + j, channel)] = narrow(activated(z)); }
        }
        for (var k = 0; k < BEFORE; k++) { seen[k] = seen[k + STEP]; }
    }
}

// y holds the gradient to x (DX 1); an invocation takes `each` runs and leaves one row of sums for the taps.
@compute @workgroup_size(WORKGROUP)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let columns = (p.width + WORKGROUP - 1u) / WORKGROUP;
    let i = group_index(group, groups);
    let part = i / columns;
    let channel = i % columns * WORKGROUP + lane;
    if part * p.each >= p.runs || channel >= p.width { return; }
    var taps: array<Num, TAPS>;
    var dtaps: array<Num, TAPS>;
    for (var k = 0u; k < TAPS; k++) {
        taps[k] = tap(channel, k);
        dtaps[k] = Num(0.0);
    }
    for (var number = part * p.each; number < min((part + 1u) * p.each, p.runs); number++) {
        let run = run_at(number);
        var seen: array<Num, WINDOW>;
        var dz: array<Num, WINDOW>;
        for (var k = 0; k < BEFORE; k++) {
            seen[k] = input(run, run.first + k - BEFORE, channel);
            dz[k] = Num(0.0);
        }
        // rows past the run's end saw its last inputs
        for (var row = run.first; row < run.end + BEFORE; row += STEP) {
            for (var j = 0; j < STEP; j++) {
                seen[BEFORE + j] = Num(0.0);
                dz[BEFORE + j] = Num(0.0);
                if row + j < min(run.end + BEFORE, run.stop) {
                    seen[BEFORE + j] = widen(x[place(row + j, channel)]);
                    dz[BEFORE + j] = widen(dy[place(row + j, channel)]);
                }
            }
            for (var j = 0; j < STEP; j++) {
                if SILU == 1u {
                    var z = Num(0.0);
                    for (var k = 0; k <= BEFORE; k++) { z = fma(taps[k], seen[j + k], z); }
                    dz[BEFORE + j] *= derivative(z);
                }
                if DW == 1u && row + j < run.end {
                    for (var k = 0; k <= BEFORE; k++) { dtaps[k] = fma(seen[j + k], dz[BEFORE + j], dtaps[k]); }
                }
                let to = row + j - BEFORE;
                if DX == 1u && to >= run.first && to < run.end {
                    var d = from_last(run, to, channel);
                    for (var k = 0; k <= BEFORE; k++) { d = fma(taps[k], dz[j + BEFORE - k], d); }
                    y[place(to, channel)] = narrow(d);
                }
            }
            for (var k = 0; k < BEFORE; k++) {
                seen[k] = seen[k + STEP];
                dz[k] = dz[k + STEP];
            }
        }
    }
    if DW == 0u { return; }
    for (var k = 0u; k < TAPS; k++) { leave(part * p.stride, channel, k, dtaps[k]); }
}
