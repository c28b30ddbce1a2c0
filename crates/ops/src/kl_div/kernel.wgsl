// One workgroup per row of tokens of a student and a teacher.
struct Params { rows: u32, words: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> s: array<S4>;
@group(0) @binding(1) var<storage, read> t: array<T4>;
// of each row log Σ exp of the student's and of the teacher's values, and the divergence
@group(0) @binding(2) var<storage, read_write> rows: array<f32>;

const LEAST: f32 = -3.4028234e38;

fn inside(x: vec4<f32>, at: u32) -> vec4<f32> {
    return select(vec4<f32>(LEAST), x, vec4<u32>(at) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.words));
}

fn student(row: u32, at: u32) -> vec4<f32> {
    let first = row * p.words + at;
    let i = first / 4u;
    if ODD == 0u { return widen_S(s[i]); }
    return inside(shifted(widen_S(s[i]), widen_S(s[min(i + 1u, arrayLength(&s) - 1u)]), first % 4u), at);
}

fn teacher(row: u32, at: u32) -> vec4<f32> {
    let first = row * p.words + at;
    let i = first / 4u;
    if ODD == 0u { return widen_T(t[i]); }
    return inside(shifted(widen_T(t[i]), widen_T(t[min(i + 1u, arrayLength(&t) - 1u)]), first % 4u), at);
}

// the difference of two logits; 0 for a token that neither distribution has, where −∞ − −∞ would be NaN
fn apart(x: vec4<f32>, y: vec4<f32>) -> vec4<f32> { return max(x, vec4<f32>(LEAST)) - max(y, vec4<f32>(LEAST)); }

fn most(x: vec4<f32>) -> f32 { return max(max(x.x, x.y), max(x.z, x.w)); }
fn sum_of(x: vec4<f32>) -> f32 { return (x.x + x.y) + (x.z + x.w); }

@compute @workgroup_size(WG)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, lane: Lane) {
    let row = group_index(group, groups);
    if row >= p.rows { return; }
    var tops = vec2<f32>(LEAST);
    for (var at = 4u * lane.index; at < p.words; at += 4u * WG) {
        tops = max(tops, vec2<f32>(most(student(row, at)), most(teacher(row, at))));
    }
    let top_s = group_max(tops.x, lane);
    let top_t = group_max(tops.y, lane);
    var sums_s = vec4<f32>(0.0);
    var sums_t = vec4<f32>(0.0);
    var mixed = vec4<f32>(0.0);
    for (var at = 4u * lane.index; at < p.words; at += 4u * WG) {
        let x = student(row, at) - vec4<f32>(top_s);
        let y = teacher(row, at) - vec4<f32>(top_t);
        let weight = exp4(y);
        sums_s += exp4(x);
        sums_t += weight;
        // where the weight is 0 the difference may be too large for a number
        mixed += select(vec4<f32>(0.0), weight * apart(y, x), weight > vec4<f32>(0.0));
    }
    let all_s = group_sum(sum_of(sums_s), lane);
    let all_t = group_sum(sum_of(sums_t), lane);
    let all = group_sum(sum_of(mixed), lane);
    if lane.index == 0u {
        rows[3u * row] = top_s + log(all_s);
        rows[3u * row + 1u] = top_t + log(all_t);
        rows[3u * row + 2u] = all / all_t - log(all_t / all_s);
    }
}

@group(0) @binding(0) var<storage, read> given: array<f32>;
@group(0) @binding(1) var<storage, read_write> loss: array<f32>;

// One workgroup: the mean over the rows.
@compute @workgroup_size(WG)
fn mean(lane: Lane) {
    var sum = 0.0;
    for (var row = lane.index; row < p.rows; row += WG) { sum += given[3u * row + 2u]; }
    let all = group_sum(sum, lane);
    if lane.index == 0u { loss[0] = all / f32(p.rows); }
}

@group(0) @binding(2) var<storage, read> found: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;

// Four tokens per invocation: the gradient to the student's values, or to the teacher's.
@compute @workgroup_size(WG)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let quads = (p.words + 3u) / 4u;
    let i = group_index(group, groups) * WG + lane;
    let row = i / quads;
    if row >= p.rows { return; }
    let at = i % quads * 4u;
    let x = student(row, at) - vec4<f32>(found[3u * row]);
    let y = teacher(row, at) - vec4<f32>(found[3u * row + 1u]);
    let by = dy[0] / f32(p.rows);
    let weight = exp4(y);
    if TO_TEACHER == 1u {
        let derivative = weight * (apart(y, x) - vec4<f32>(found[3u * row + 2u]));
        put(row, at, by * select(vec4<f32>(0.0), derivative, weight > vec4<f32>(0.0)));
    } else {
        put(row, at, by * (exp4(x) - weight));
    }
}
