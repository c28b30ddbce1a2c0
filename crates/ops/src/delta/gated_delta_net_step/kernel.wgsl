// A workgroup has a value head: it convolves the head's channels, and updates the rows of its state. LANES invocations share
// a row, each has EACH units of it; an invocation has a part of SWEEPS rows in registers.
struct Params {
    count: u32, row: u32, channels: u32, heads: u32, share: u32, all_keys: u32,
    q: u32, key: u32, value: u32, z: u32, b: u32, a: u32,
    key_stride: u32, value_stride: u32, gate_stride: u32,
    l2_eps: f32, norm_eps: f32, beta_scale: f32, scale: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<Stored>;
@group(0) @binding(1) var<storage, read> old: array<Stored>;
@group(0) @binding(2) var<storage, read> filters: array<Stored>;
@group(0) @binding(3) var<storage, read> a_log: array<f32>;
@group(0) @binding(4) var<storage, read> dt_bias: array<f32>;
@group(0) @binding(5) var<storage, read> weight: array<Stored>;
@group(0) @binding(6) var<storage, read_write> state: array<Num>;
@group(0) @binding(7) var<storage, read_write> fresh: array<Stored>;
@group(0) @binding(8) var<storage, read_write> y: array<Stored>;

const KEY_UNITS = KEYS / UNIT;
const VALUE_UNITS = VALUES / UNIT;
const ROWS = WG / LANES;
const TURNS = (VALUES + ROWS * SWEEPS - 1u) / (ROWS * SWEEPS);

var<workgroup> queries: array<Num, KEY_UNITS>;
var<workgroup> keys: array<Num, KEY_UNITS>;
var<workgroup> values: array<f32, VALUES>;
var<workgroup> outputs: array<f32, VALUES>;
var<workgroup> sums: array<f32, WG * SWEEPS>;

fn x_at(i: u32) -> f32 { return element(widen(x[i / UNIT]), i % UNIT); }
fn filter_at(i: u32) -> f32 { return element(widen(filters[i / UNIT]), i % UNIT); }

// a unit of x from any element on: rows of x may begin anywhere
fn x_unit(i: u32) -> Num {
    if i % UNIT == 0u { return widen(x[i / UNIT]); }
    return gather(vec4<f32>(x_at(i), x_at(i + 1u), x_at(i + 2u), x_at(i + 3u)));
}

// the filters' tap of the channels of a unit
fn tap(channel: u32, j: u32) -> Num {
    let first = channel * TAPS + j;
    if UNIT == 1u { return gather(vec4<f32>(filter_at(first))); }
    return gather(vec4<f32>(
        filter_at(first), filter_at(first + TAPS), filter_at(first + 2u * TAPS), filter_at(first + 3u * TAPS)
    ));
}

// the channels of a unit after convolution and SiLU; one workgroup of those that read them moves the window on
fn convolved(sequence: u32, channel: u32, place: u32, moves: bool) -> Num {
    let units = p.channels / UNIT;
    let base = sequence * (TAPS - 1u) * units + channel / UNIT;
    var sum = Num(0.0);
    for (var j = 0u; j < TAPS - 1u; j++) {
        let stored = old[base + j * units];
        sum += widen(stored) * tap(channel, j);
        if moves && j > 0u { fresh[base + (j - 1u) * units] = stored; }
    }
    let last = x_unit(sequence * p.row + place);
    if moves { fresh[base + (TAPS - 2u) * units] = narrow(last); }
    return silu_of(sum + last * tap(channel, TAPS - 1u));
}

// the sum over the invocations of each row that this one has a part of
fn row_total(sweep: u32, index: u32) -> f32 {
    let first = sweep * WG + index / LANES * LANES;
    var sum = sums[first];
    for (var i = 1u; i < LANES; i++) { sum += sums[first + i]; }
    return sum;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, lane: Lane) {
    let own = group_index(group, groups);
    if own >= p.count { return; }
    let sequence = own / p.heads;
    let head = own % p.heads;
    let key_head = head / p.share;
    let of_key = head % p.share;
    let index = lane.index;
    let gate = sequence * p.row + key_head * p.gate_stride + of_key;
    // what is needed late is read early
    let a = x_at(p.a + gate) + dt_bias[head];
    let b = x_at(p.b + gate);
    let rate = a_log[head];
    let z = sequence * p.row + p.z + key_head * p.value_stride + of_key * VALUES;
    var gain = Num(0.0);
    if index < VALUE_UNITS { gain = widen(weight[index]) * silu_of(x_unit(z + index * UNIT)); }
    var decay = 0.0;
    var beta = 0.0;
    var kept: array<Num, SWEEPS * EACH>;
    for (var turn = 0u; turn < TURNS; turn++) {
        let first_row = turn * ROWS * SWEEPS + index / LANES;
        for (var i = 0u; i < SWEEPS * EACH; i++) {
            let row = first_row + i / EACH * ROWS;
            let unit = i % EACH * LANES + index % LANES;
            kept[i] = Num(0.0);
            if row < VALUES && unit < KEY_UNITS { kept[i] = state[(own * VALUES + row) * KEY_UNITS + unit]; }
        }
        if turn == 0u {
            var of_query = 0.0;
            var of_keys = 0.0;
            for (var unit = index; unit < 2u * KEY_UNITS + VALUE_UNITS; unit += WG) {
                let moves = of_key == 0u || unit >= 2u * KEY_UNITS;
                if unit < KEY_UNITS {
                    let at = unit * UNIT;
                    let place = p.q + key_head * p.key_stride + at;
                    queries[unit] = convolved(sequence, key_head * KEYS + at, place, moves);
                    of_query += total(queries[unit] * queries[unit]);
                } else if unit < 2u * KEY_UNITS {
                    let at = (unit - KEY_UNITS) * UNIT;
                    let place = p.key + key_head * p.key_stride + at;
                    keys[unit - KEY_UNITS] = convolved(sequence, p.all_keys + key_head * KEYS + at, place, moves);
                    of_keys += total(keys[unit - KEY_UNITS] * keys[unit - KEY_UNITS]);
                } else {
                    let at = (unit - 2u * KEY_UNITS) * UNIT;
                    let place = p.value + key_head * p.value_stride + of_key * VALUES + at;
                    let value = convolved(sequence, 2u * p.all_keys + head * VALUES + at, place, moves);
                    for (var j = 0u; j < UNIT; j++) { values[at + j] = element(value, j); }
                }
            }
            let by_query = inverseSqrt(group_sum(of_query, lane) + p.l2_eps);
            let by_keys = inverseSqrt(group_sum(of_keys, lane) + p.l2_eps);
            for (var unit = index; unit < KEY_UNITS; unit += WG) {
                queries[unit] *= by_query;
                keys[unit] *= by_keys;
            }
            decay = exp1(-exp1(rate) * softplus4(vec4<f32>(a)).x);
            beta = p.beta_scale * sigmoid1(b);
        }
        workgroupBarrier();
        for (var sweep = 0u; sweep < SWEEPS; sweep++) {
            var sum = 0.0;
            for (var i = 0u; i < EACH; i++) {
                let unit = i * LANES + index % LANES;
                kept[sweep * EACH + i] *= decay;
                if unit < KEY_UNITS { sum += total(kept[sweep * EACH + i] * keys[unit]); }
            }
            sums[sweep * WG + index] = sum;
        }
        workgroupBarrier();
        var write: array<f32, SWEEPS>;
        for (var sweep = 0u; sweep < SWEEPS; sweep++) {
            let row = min(first_row + sweep * ROWS, VALUES - 1u);
            write[sweep] = beta * (values[row] - row_total(sweep, index));
        }
        workgroupBarrier();
        for (var sweep = 0u; sweep < SWEEPS; sweep++) {
            let row = first_row + sweep * ROWS;
            var sum = 0.0;
            for (var i = 0u; i < EACH; i++) {
                let unit = i * LANES + index % LANES;
                if unit < KEY_UNITS {
                    let moved = kept[sweep * EACH + i] + write[sweep] * keys[unit];
                    sum += total(moved * queries[unit]);
                    if row < VALUES { state[(own * VALUES + row) * KEY_UNITS + unit] = moved; }
                }
            }
            sums[sweep * WG + index] = sum;
        }
        workgroupBarrier();
        for (var sweep = 0u; sweep < SWEEPS; sweep++) {
            let row = first_row + sweep * ROWS;
            if index % LANES == 0u && row < VALUES { outputs[row] = p.scale * row_total(sweep, index); }
        }
        workgroupBarrier();
    }
    var squares = 0.0;
    for (var i = index; i < VALUES; i += WG) { squares += outputs[i] * outputs[i]; }
    let by = inverseSqrt(group_sum(squares, lane) / f32(VALUES) + p.norm_eps);
    for (var unit = index; unit < VALUE_UNITS; unit += WG) {
        let at = unit * UNIT;
        var o = Num(outputs[at]);
        if UNIT == 4u {
            o = gather(vec4<f32>(outputs[at], outputs[at + 1u], outputs[at + 2u], outputs[at + 3u]));
        }
        if unit >= WG { gain = widen(weight[unit]) * silu_of(x_unit(z + at)); }
        y[(own * VALUES + at) / UNIT] = narrow(o * by * gain);
    }
}
