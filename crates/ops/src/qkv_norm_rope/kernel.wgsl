// A workgroup has a head of a token: it normalizes and rotates a query or a key, or copies a value.
struct Params {
    count: u32, row: u32, queries: u32, kv: u32, width: u32, pairs: u32, step: u32, apart: u32,
    share: f32, eps: f32, magnitude: f32,
}
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<Stored>;
@group(0) @binding(1) var<storage, read> positions: array<u32>;
@group(0) @binding(2) var<storage, read> frequencies: array<Bits>;
@group(0) @binding(3) var<storage, read> q_norm: array<Stored>;
@group(0) @binding(4) var<storage, read> k_norm: array<Stored>;
@group(0) @binding(5) var<storage, read_write> q: array<Stored>;
@group(0) @binding(6) var<storage, read_write> k: array<Stored>;
@group(0) @binding(7) var<storage, read_write> v: array<Stored>;
@group(0) @binding(8) var<storage, read_write> gate: array<Stored>;

var<workgroup> kept: array<Num, WIDTH>;

fn put(is_query: bool, at: u32, value: Num) {
    if is_query { q[at] = narrow(value); } else { k[at] = narrow(value); }
}

// the head of a workgroup: where it lies in x, whose it is, and its place in the results
struct Head { first: u32, kind: u32, to: u32, token: u32 }

fn head_of(own: u32, each: u32) -> Head {
    let heads = p.queries + 2u * p.kv;
    let token = own / heads;
    let head = own % heads;
    let keys = token * p.row + p.queries * each;
    if head < p.queries {
        return Head(token * p.row + head * each, 0u, (token * p.queries + head) * p.width, token);
    }
    let key = head - p.queries;
    if key < p.kv { return Head(keys + key * p.width, 1u, (token * p.kv + key) * p.width, token); }
    return Head(keys + key * p.width, 2u, (token * p.kv + key - p.kv) * p.width, token);
}

fn rotate(own: Head, lane: Lane) {
    var squares = 0.0;
    for (var i = lane.index; i < p.width; i += WG) {
        kept[i] = widen(x[own.first + i]);
        squares += total(kept[i] * kept[i]);
    }
    let by = inverseSqrt(group_sum(squares, lane) * p.share + p.eps);
    if NORM == 1u && own.kind < 2u {
        for (var i = lane.index; i < p.width; i += WG) {
            var weight = Num(0.0);
            if own.kind == 0u { weight = widen(q_norm[i]); } else { weight = widen(k_norm[i]); }
            kept[i] *= by * weight;
        }
    }
    workgroupBarrier();
    if own.kind == 2u {
        for (var i = lane.index; i < p.width; i += WG) { v[own.to + i] = x[own.first + i]; }
        return;
    }
    let is_query = own.kind == 0u;
    let position = Bits(positions[own.token]);
    for (var job = lane.index; job < p.width - p.pairs; job += WG) {
        if job >= p.pairs {
            put(is_query, own.to + p.pairs + job, kept[p.pairs + job]);
            continue;
        }
        let by = angle(position * frequencies[job] + high(position, frequencies[p.pairs + job]));
        let sine = p.magnitude * by.sine;
        let cosine = p.magnitude * by.cosine;
        let at = job * p.step;
        let a = kept[at];
        let b = kept[at + p.apart];
        put(is_query, own.to + at, a * cosine - b * sine);
        put(is_query, own.to + at + p.apart, a * sine + b * cosine);
    }
}

@compute @workgroup_size(WG)
fn plain(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, lane: Lane) {
    let own = group_index(group, groups);
    if own >= p.count { return; }
    rotate(head_of(own, p.width), lane);
}

@compute @workgroup_size(WG)
fn gated(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, lane: Lane) {
    let own = group_index(group, groups);
    if own >= p.count { return; }
    let head = head_of(own, 2u * p.width);
    if head.kind == 0u {
        for (var i = lane.index; i < p.width; i += WG) {
            gate[head.to + i] = narrow(sigmoid_of(widen(x[head.first + p.width + i])));
        }
    }
    rotate(head, lane);
}
