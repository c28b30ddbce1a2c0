// DA and DB are 1 where the gradients to a and b are needed. Four gates per invocation; each gate of a row belongs to a
// head. Sums over rows: COLUMNS heads and SLOTS rows at once.
const SLOTS = 256u / COLUMNS;
struct Params { n: u32, heads: u32, rows: u32, each: u32, stride: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> a: array<X4>;
@group(0) @binding(1) var<storage, read> a_log: array<f32>;
@group(0) @binding(2) var<storage, read> dt_bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> beta: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> g: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> b: array<X4>;
var<workgroup> slots: array<vec2<f32>, 256>;

fn heads_from(i: u32) -> vec4<u32> { return (vec4<u32>(i) + vec4<u32>(0u, 1u, 2u, 3u)) % p.heads; }
fn rates(heads: vec4<u32>) -> vec4<f32> {
    return exp4(vec4<f32>(a_log[heads.x], a_log[heads.y], a_log[heads.z], a_log[heads.w]));
}
fn biased(x: vec4<f32>, heads: vec4<u32>) -> vec4<f32> {
    return x + vec4<f32>(dt_bias[heads.x], dt_bias[heads.y], dt_bias[heads.z], dt_bias[heads.w]);
}

@compute @workgroup_size(256)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i >= p.n { return; }
    let heads = heads_from(4u * i);
    g[i] = -rates(heads) * softplus4(biased(widen_X(a[i]), heads));
    beta[i] = sigmoid4(widen_X(b[i]));
}

@group(0) @binding(3) var<storage, read> logits: array<X4>;
@group(0) @binding(4) var<storage, read> dg: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> dbeta: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> da: array<X4>;
@group(0) @binding(7) var<storage, read_write> db: array<X4>;

@compute @workgroup_size(256)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i >= p.n { return; }
    let heads = heads_from(4u * i);
    if DA == 1u { da[i] = narrow_X(-rates(heads) * sigmoid4(biased(widen_X(a[i]), heads)) * dg[i]); }
    if DB == 1u {
        // sigmoid(-x) is 1 - beta without the cancellation
        let x = widen_X(logits[i]);
        db[i] = narrow_X(sigmoid4(x) * sigmoid4(-x) * dbeta[i]);
    }
}

@group(0) @binding(3) var<storage, read> gates: array<f32>;
@group(0) @binding(4) var<storage, read> dgates: array<f32>;
@group(0) @binding(5) var<storage, read_write> log_sums: array<f32>;
@group(0) @binding(6) var<storage, read_write> bias_sums: array<f32>;

@compute @workgroup_size(256)
fn sums(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let chunks = (p.heads + COLUMNS - 1u) / COLUMNS;
    let number = group_index(group, groups);
    let part = number / chunks;
    if part * p.each >= p.rows { return; }
    let slot = lane / COLUMNS;
    let head = number % chunks * COLUMNS + lane % COLUMNS;
    var sum = vec2<f32>(0.0);
    if slot < SLOTS && head < p.heads {
        let rate = exp1(a_log[head]);
        let bias = dt_bias[head];
        for (var row = part * p.each + slot; row < min((part + 1u) * p.each, p.rows); row += SLOTS) {
            let i = row * p.heads + head;
            let quad = widen_X(a[i / 4u]);
            let d = dgates[i];
            sum += vec2<f32>(gates[i] * d, -rate * sigmoid1(quad[i % 4u] + bias) * d);
        }
    }
    slots[lane] = sum;
    workgroupBarrier();
    if slot == 0u && head < p.heads {
        for (var i = 1u; i < SLOTS; i++) { sum += slots[i * COLUMNS + lane]; }
        log_sums[part * p.stride + head] = sum.x;
        bias_sums[part * p.stride + head] = sum.y;
    }
}
