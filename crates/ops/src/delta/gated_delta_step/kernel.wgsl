// A step of the recurrence: each row of the state is read once and written once.
struct Params { rows: u32, values: u32, keys: u32, v_heads: u32, share: u32, scale: f32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read> k: array<f32>;
@group(0) @binding(2) var<storage, read> v: array<f32>;
@group(0) @binding(3) var<storage, read> g: array<f32>;
@group(0) @binding(4) var<storage, read> beta: array<f32>;
@group(0) @binding(5) var<storage, read_write> state: array<f32>;
@group(0) @binding(6) var<storage, read_write> o: array<f32>;

var<workgroup> partial: array<f32, 256>;

// the sum over the 32 invocations of a row
fn sum_of_32(x: f32, lane: u32) -> f32 {
    workgroupBarrier();
    partial[lane] = x;
    for (var half = 16u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane % 32u < half { partial[lane] += partial[lane + half]; }
    }
    workgroupBarrier();
    return partial[lane / 32u * 32u];
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    // an invocation without a row works on the last one again, and writes nothing
    let asked = group_index(group, groups) * 8u + lane / 32u;
    let row = min(asked, p.rows - 1u);
    let head = row / p.values;
    let key = (head / p.v_heads * (p.v_heads / p.share) + head % p.v_heads / p.share) * p.keys;
    // all reads come first, so that they wait for memory together
    let value = v[row];
    let rate = beta[head];
    let log_decay = g[head];
    var kept: array<f32, EACH>;
    var keys: array<f32, EACH>;
    var queries: array<f32, EACH>;
    for (var i = 0u; i < EACH; i++) {
        let c = i * 32u + lane % 32u;
        let at = min(c, p.keys - 1u);
        kept[i] = select(0.0, state[row * p.keys + at], c < p.keys);
        keys[i] = select(0.0, k[key + at], c < p.keys);
        queries[i] = select(0.0, q[key + at], c < p.keys);
    }
    let decay = exp1(log_decay);
    var sum = 0.0;
    for (var i = 0u; i < EACH; i++) {
        kept[i] *= decay;
        sum += kept[i] * keys[i];
    }
    let write = rate * (value - sum_of_32(sum, lane));
    sum = 0.0;
    for (var i = 0u; i < EACH; i++) {
        let c = i * 32u + lane % 32u;
        let fresh = kept[i] + write * keys[i];
        sum += fresh * queries[i];
        if c < p.keys && asked < p.rows { state[row * p.keys + c] = fresh; }
    }
    let out = sum_of_32(sum, lane);
    if lane % 32u == 0u && asked < p.rows { o[row] = p.scale * out; }
}
