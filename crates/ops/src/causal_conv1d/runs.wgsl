// Runs of rows of one sequence, and the rows before them. An invocation has a unit of channels.
const BEFORE: i32 = i32(TAPS) - 1;
// rows of a state; never a divisor of zero
const KEPT: i32 = max(BEFORE, 1);
const WORKGROUP = 64u;
struct Params { runs: u32, width: u32, tokens: u32, block: u32, each: u32, stride: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<Stored>;
@group(0) @binding(1) var<storage, read> state: array<Stored>;
// first row, the sequence's first and the one past its last, the sequence; for each run, then for each sequence
@group(0) @binding(2) var<storage, read> table: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> y: array<Stored>;
@group(0) @binding(5) var<storage, read> dy: array<Stored>;
@group(0) @binding(6) var<storage, read> dlast: array<Stored>;

struct Run { first: i32, end: i32, start: i32, stop: i32, sequence: i32 }

fn run_at(i: u32) -> Run {
    let block = i32(p.block);
    if PACKED == 1u {
        let row = vec4<i32>(table[i]);
        return Run(row.x, min(row.x + block, row.z), row.y, row.z, row.w);
    }
    let each = (p.tokens + p.block - 1u) / p.block;
    let start = i32(i / each * p.tokens);
    let first = start + i32(i % each) * block;
    let stop = start + i32(p.tokens);
    return Run(first, min(first + block, stop), start, stop, i32(i / each));
}

fn sequence_at(i: u32) -> Run {
    if PACKED == 1u { return run_at(p.runs + i); }
    let start = i32(i * p.tokens);
    return Run(start, start, start, start + i32(p.tokens), i32(i));
}

fn place(row: i32, channel: u32) -> u32 { return u32(row) * p.width + channel; }

// rows before the start come from the state, or are zero
fn input(run: Run, row: i32, channel: u32) -> Num {
    if row >= run.start { return widen(x[place(row, channel)]); }
    if STATE == 0u { return Num(0.0); }
    return widen(state[place(run.sequence * BEFORE + row - run.start + BEFORE, channel)]);
}

// the gradient of the final state goes to the inputs that it repeats
fn from_last(run: Run, row: i32, channel: u32) -> Num {
    let kept = row - (run.stop - BEFORE);
    if LAST == 0u || kept < 0 { return Num(0.0); }
    return widen(dlast[place(run.sequence * BEFORE + kept, channel)]);
}

fn activated(z: Num) -> Num {
    if SILU == 1u { return silu(z); }
    return z;
}

fn derivative(z: Num) -> Num {
    if SILU == 1u { return silu_and_derivative(z).derivative; }
    return Num(1.0);
}

fn sum_at(run: Run, row: i32, channel: u32) -> Num {
    var z = Num(0.0);
    for (var k = 0; k <= BEFORE; k++) { z += tap(channel, u32(k)) * input(run, row + k - BEFORE, channel); }
    return z;
}

fn dz_at(run: Run, row: i32, channel: u32) -> Num {
    let d = widen(dy[place(row, channel)]);
    if SILU == 0u { return d; }
    return d * derivative(sum_at(run, row, channel));
}

// the gradient to one input: of the rows after it that saw it
fn dinput_at(run: Run, row: i32, channel: u32) -> Num {
    var d = from_last(run, row, channel);
    for (var k = 0; k <= BEFORE; k++) {
        let seen = row + BEFORE - k;
        if seen >= run.start && seen < run.stop { d += tap(channel, u32(k)) * dz_at(run, seen, channel); }
    }
    return d;
}

// The rows that a sequence leaves as its state.
@compute @workgroup_size(WORKGROUP)
fn last(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let columns = (p.width + WORKGROUP - 1u) / WORKGROUP;
    let i = group_index(group, groups);
    let channel = i % columns * WORKGROUP + lane;
    let row = i32(i / columns);
    if row >= i32(p.each) * BEFORE || channel >= p.width { return; }
    let run = sequence_at(u32(row / KEPT));
    y[place(row, channel)] = narrow(input(run, run.stop - BEFORE + row % KEPT, channel));
}

// The gradient to the initial state.
@compute @workgroup_size(WORKGROUP)
fn before(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let columns = (p.width + WORKGROUP - 1u) / WORKGROUP;
    let i = group_index(group, groups);
    let channel = i % columns * WORKGROUP + lane;
    let row = i32(i / columns);
    if row >= i32(p.each) * BEFORE || channel >= p.width { return; }
    let run = sequence_at(u32(row / KEPT));
    y[place(row, channel)] = narrow(dinput_at(run, run.start - BEFORE + row % KEPT, channel));
}
