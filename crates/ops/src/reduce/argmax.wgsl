// Argmax of each row, cut into `parts` of `each` values; the first of equal ones. Values are compared as
// integers in the same order, in which NaN comes first.
const NONE = 0xffffffffu;
struct Params { rows: u32, width: u32, parts: u32, each: u32 }
struct Best { key: u32, at: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> keys: array<u32>;
@group(0) @binding(1) var<storage, read_write> places: array<u32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
var<workgroup> shared_keys: array<u32, WG>;
var<workgroup> shared_places: array<u32, WG>;

fn key_of(number: f32) -> u32 {
    let bits = bitcast<u32>(number);
    let size = bits & 0x7fffffffu;
    if size > 0x7f800000u { return 0u; }
    // both zeros are equal
    if size == 0u { return 0x80000000u; }
    return select(bits | 0x80000000u, ~bits, bits > 0x7fffffffu);
}

fn better(a: Best, b: Best) -> Best {
    if b.key > a.key || (b.key == a.key && b.at < a.at) { return b; }
    return a;
}

// the best of all lanes, in the first
fn best_of_group(own: Best, lane: u32) -> Best {
    var best = own;
    shared_keys[lane] = best.key;
    shared_places[lane] = best.at;
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            best = better(best, Best(shared_keys[lane + half], shared_places[lane + half]));
            shared_keys[lane] = best.key;
            shared_places[lane] = best.at;
        }
    }
    return best;
}

@compute @workgroup_size(WG)
fn find(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let number = group_index(group, groups);
    if number >= p.rows * p.parts { return; }
    let base = number / p.parts * p.width;
    let start = number % p.parts * p.each;
    var best = Best(0u, NONE);
    for (var i = start + lane; i < min(start + p.each, p.width); i += WG) {
        best = better(best, Best(key_of(x[base + i]), i));
    }
    best = best_of_group(best, lane);
    if lane == 0u {
        keys[number] = best.key;
        places[number] = best.at;
    }
}

@group(0) @binding(2) var<storage, read_write> at: array<u32>;

@compute @workgroup_size(WG)
fn join(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group_index(group, groups);
    if row >= p.rows { return; }
    var best = Best(0u, NONE);
    for (var i = lane; i < p.parts; i += WG) {
        best = better(best, Best(keys[row * p.parts + i], places[row * p.parts + i]));
    }
    best = best_of_group(best, lane);
    if lane == 0u { at[row] = best.at; }
}
