// `stride` is in quads; `first` is the chunk's first token
struct Params { tokens: u32, first: u32, words: u32, stride: u32, ignored: u32, ignores: u32, z_loss: f32, mean: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> targets: array<u32>;
@group(0) @binding(1) var<storage, read_write> losses: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read_write> z: array<vec4<f32>>;

fn counts(target_word: u32) -> bool { return p.ignores == 0u || target_word != p.ignored; }

const LEAST: f32 = -3.4028234e38;

// four logits; words past the end weigh nothing
fn logits(base: u32, i: u32) -> vec4<f32> {
    return select(vec4<f32>(LEAST), z[base + i], vec4<u32>(4u * i) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.words));
}

// One workgroup a token: the loss, and where it is wanted the gradient, which takes the logits' place.
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
        sum += exp4(x - vec4<f32>(top));
    }
    let largest = group_max(top, lane);
    // an invocation without words has summed nothing
    let all = group_sum(((sum.x + sum.y) + (sum.z + sum.w)) * exp1(top - largest), lane);
    let logs = log(all);
    let lse = largest + logs;
    let counted = counts(given);
    if lane.index == 0u {
        losses[p.first + row] = select(0.0, (largest - right) + logs + p.z_loss * lse * lse, counted);
    }
    if GRADIENT == 1u {
        storageBarrier();
        let scale = weight[0] * (1.0 + 2.0 * p.z_loss * lse) / all;
        for (var i = lane.index; i < quads; i += WG) {
            let x = scale * exp4(logits(base, i) - vec4<f32>(largest));
            let hit = vec4<u32>(4u * i) + vec4<u32>(0u, 1u, 2u, 3u) == vec4<u32>(word);
            z[base + i] = select(vec4<f32>(0.0), x - select(vec4<f32>(0.0), vec4<f32>(weight[0]), hit), counted);
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
