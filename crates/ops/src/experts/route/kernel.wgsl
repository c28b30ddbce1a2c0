// One workgroup per token. Experts are ordered by falling logits, equal ones by their index, and each pass finds the
// next in that order: nothing is marked, and NaN comes last.
struct Params { rows: u32, width: u32, chosen: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read_write> weights: array<f32>;
@group(0) @binding(2) var<storage, read_write> experts: array<u32>;

struct Best { key: u32, at: u32 }
const NONE = Best(0u, 0xffffffffu);
var<workgroup> keys: array<u32, WG>;
var<workgroup> places: array<u32, WG>;

// an integer in the order of the logits; both zeros are equal
fn key_of(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let size = bits & 0x7fffffffu;
    if size > 0x7f800000u { return 0u; }
    if size == 0u { return 0x80000000u; }
    return select(bits | 0x80000000u, ~bits, bits > 0x7fffffffu);
}

fn before(a: Best, b: Best) -> bool { return a.key > b.key || (a.key == b.key && a.at < b.at); }

// the first of all invocations' in the order
fn first_of_group(own: Best, lane: u32) -> Best {
    workgroupBarrier();
    keys[lane] = own.key;
    places[lane] = own.at;
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            let other = Best(keys[lane + half], places[lane + half]);
            if before(other, Best(keys[lane], places[lane])) {
                keys[lane] = other.key;
                places[lane] = other.at;
            }
        }
    }
    workgroupBarrier();
    return Best(keys[0], places[0]);
}

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, lane: Lane) {
    let row = group_index(group, groups);
    if row >= p.rows { return; }
    let base = row * p.width;
    let to = row * p.chosen;
    var most = 0.0;
    var last = NONE;
    for (var found = 0u; found < p.chosen; found++) {
        var next = NONE;
        for (var i = lane.index; i < p.width; i += WG) {
            let here = Best(key_of(logits[base + i]), i);
            if (found == 0u || before(last, here)) && before(here, next) { next = here; }
        }
        last = first_of_group(next, lane.index);
        let x = logits[base + last.at];
        if found == 0u { most = x; }
        // the invocation that writes a choice computes its weight below
        if found % WG == lane.index {
            experts[to + found] = last.at;
            weights[to + found] = exp1(x - most);
        }
    }
    var part = 0.0;
    if NORMALIZE == 1u {
        for (var k = lane.index; k < p.chosen; k += WG) { part += weights[to + k]; }
    } else {
        for (var i = lane.index; i < p.width; i += WG) { part += exp1(logits[base + i] - most); }
    }
    let sum = group_sum(part, lane);
    for (var k = lane.index; k < p.chosen; k += WG) { weights[to + k] /= sum; }
}

@group(0) @binding(3) var<storage, read> dw: array<f32>;
@group(0) @binding(4) var<storage, read_write> dx: array<f32>;
@group(0) @binding(5) var<storage, read> w: array<f32>;
@group(0) @binding(6) var<storage, read> chosen: array<u32>;

@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, lane: Lane) {
    let row = group_index(group, groups);
    if row >= p.rows { return; }
    let base = row * p.width;
    let first = row * p.chosen;
    var part = 0.0;
    for (var k = lane.index; k < p.chosen; k += WG) { part += w[first + k] * dw[first + k]; }
    let mean = group_sum(part, lane);
    let most = logits[base + chosen[first]];
    var sum = 1.0;
    if NORMALIZE == 0u {
        part = 0.0;
        for (var i = lane.index; i < p.width; i += WG) { part += exp1(logits[base + i] - most); }
        sum = group_sum(part, lane);
    }
    for (var i = lane.index; i < p.width; i += WG) {
        var d = 0.0;
        if NORMALIZE == 0u { d = -mean / sum * exp1(logits[base + i] - most); }
        for (var k = 0u; k < p.chosen; k++) {
            if chosen[first + k] == i { d += w[first + k] * (dw[first + k] - select(0.0, mean, NORMALIZE == 1u)); }
        }
        dx[base + i] = d;
    }
}
