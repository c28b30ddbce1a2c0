// `stride` is in vec4s; `first` is the chunk's first token
struct Params { tokens: u32, first: u32, words: u32, stride: u32, ignored: u32, ignores: u32, z_loss: f32, mean: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> targets: array<u32>;
@group(0) @binding(1) var<storage, read_write> losses: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read_write> z: array<vec4<f32>>;

fn counts(target_word: u32) -> bool { return p.ignores == 0u || target_word != p.ignored; }

const LEAST: f32 = -3.4028234e38;

// four logits; tokens past the end have weight 0
fn logits(base: u32, i: u32) -> vec4<f32> {
    return select(vec4<f32>(LEAST), z[base + i], vec4<u32>(4u * i) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.words));
}

// log(1 + x) for x >= 0, to its own size
fn log_of_1_and(x: f32) -> f32 {
    if x > 1.0 { return log(1.0 + x); }
    // 2 atanh(r) with r at most 1/3, where the series converges fast
    let r = x / (2.0 + x);
    let q = r * r;
    var p = 1.0 / 15.0;
    p = fma(p, q, 1.0 / 13.0);
    p = fma(p, q, 1.0 / 11.0);
    p = fma(p, q, 1.0 / 9.0);
    p = fma(p, q, 1.0 / 7.0);
    p = fma(p, q, 0.2);
    p = fma(p, q, 1.0 / 3.0);
    p = fma(p, q, 1.0);
    return 2.0 * r * p;
}

fn is_word(i: u32, word: u32) -> vec4<bool> {
    return vec4<u32>(4u * i) + vec4<u32>(0u, 1u, 2u, 3u) == vec4<u32>(word);
}

// One workgroup per token: the loss, and where it is wanted the gradient, which `keep` takes.
@compute @workgroup_size(WG)
fn token(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, lane: Lane) {
    let row = group_index(group, groups);
    if row >= p.tokens { return; }
    let base = row * p.stride;
    let quads = (p.words + 3u) / 4u;
    let given = targets[p.first + row];
    let word = min(given, p.words - 1u);
    let right = z[base + word / 4u][word % 4u];
    var top = LEAST;
    var sum = vec4<f32>(0.0);
    for (var i = lane.index; i < quads; i += WG) {
        let x = logits(base, i);
        let most = max(max(x.x, x.y), max(x.z, x.w));
        if most > top {
            sum *= exp1(top - most);
            top = most;
        }
        // the target is left out: of a likely one, 1 - p would cancel
        sum += select(exp4(x - vec4<f32>(top)), vec4<f32>(0.0), is_word(i, word));
    }
    let largest = group_max(top, lane);
    // an invocation without words has summed nothing
    let others = group_sum(((sum.x + sum.y) + (sum.z + sum.w)) * exp1(top - largest), lane);
    let own = exp1(right - largest);
    let all = own + others;
    let logs = select(log(all), log_of_1_and(others), right == largest);
    let lse = largest + logs;
    let counted = counts(given);
    if lane.index == 0u {
        losses[p.first + row] = select(0.0, (largest - right) + logs + p.z_loss * lse * lse, counted);
    }
    if GRADIENT == 1u {
        storageBarrier();
        let of_lse = 2.0 * p.z_loss * lse;
        let scale = weight[0] * (1.0 + of_lse) / all;
        // p - 1, as what the other words have of the sum
        let of_target = weight[0] * (of_lse * own - others) / all;
        for (var i = lane.index; i < quads; i += WG) {
            let x = scale * exp4(logits(base, i) - vec4<f32>(largest));
            let gradient = select(x, vec4<f32>(of_target), is_word(i, word));
            keep(base + i, select(vec4<f32>(0.0), gradient, counted));
        }
    }
}

@group(0) @binding(1) var<storage, read_write> weigh: array<f32>;

// One workgroup: what each loss counts, 1 or 1 over the number of targets that count.
@compute @workgroup_size(WG)
fn weights(lane: Lane) {
    var count = 0.0;
    for (var i = lane.index; i < p.tokens; i += WG) { count += select(0.0, 1.0, counts(targets[i])); }
    let all = group_sum(count, lane);
    if lane.index == 0u { weigh[0] = select(1.0, 1.0 / max(all, 1.0), p.mean == 1u); }
}

@group(0) @binding(0) var<storage, read> each: array<f32>;
@group(0) @binding(1) var<storage, read_write> loss: array<f32>;

// One workgroup: the losses together.
@compute @workgroup_size(WG)
fn total(lane: Lane) {
    var sum = 0.0;
    for (var i = lane.index; i < p.tokens; i += WG) { sum += each[i]; }
    let all = group_sum(sum, lane);
    if lane.index == 0u { loss[0] = all * weight[0]; }
}
