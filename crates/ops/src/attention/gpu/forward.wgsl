// One workgroup per block of up to 64 queries of one sequence and head: keys are read in tiles of 64, the softmax is rescaled when the largest score
// grows.
@group(0) @binding(1) var<storage, read_write> lse: array<f32>;
@group(0) @binding(2) var<storage, read> q: array<X4>;
@group(0) @binding(3) var<storage, read> k: array<X4>;
@group(0) @binding(4) var<storage, read> v: array<X4>;
var<private> batch: u32;
var<private> head: u32;
var<workgroup> shares: array<vec4<f32>, 256>;

fn own_row(row: u32) -> u32 { return ((batch * p.tokens + row) * p.heads + head) * p.width; }

fn streamed_row(row: u32) -> u32 {
    return ((batch * p.positions + row) * p.shared_heads + head / (p.heads / p.shared_heads)) * p.width;
}

fn own(which: u32, at: u32) -> vec4<f32> {
    let i = at / 4u;
    if ODD == 0u { return widen_X(q[i]); }
    return shifted(widen_X(q[i]), widen_X(q[min(i + 1u, arrayLength(&q) - 1u)]), at % 4u);
}

fn streamed(which: u32, at: u32) -> vec4<f32> {
    let i = at / 4u;
    if which == 0u {
        if ODD == 0u { return widen_X(k[i]); }
        return shifted(widen_X(k[i]), widen_X(k[min(i + 1u, arrayLength(&k) - 1u)]), at % 4u);
    }
    if ODD == 0u { return widen_X(v[i]); }
    return shifted(widen_X(v[i]), widen_X(v[min(i + 1u, arrayLength(&v) - 1u)]), at % 4u);
}

// below every score, and what a hidden one is: their distance weighs nothing
const LEAST: f32 = -1.0e38;
const HIDDEN: f32 = -3.0e38;

fn scaled(scores: vec4<f32>, query: u32, key: u32) -> vec4<f32> {
    let keys = vec4<u32>(key) + vec4<u32>(0u, 1u, 2u, 3u);
    return select(vec4<f32>(HIDDEN), p.scale * scores, keys <= vec4<u32>(past() + query));
}

fn most(x: vec4<f32>) -> f32 { return max(max(x.x, x.y), max(x.z, x.w)); }
fn total(x: vec4<f32>) -> f32 { return (x.x + x.y) + (x.z + x.w); }

@compute @workgroup_size(256)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    // the last queries attend to most keys, so they start first
    let rows = block(groups.x - 1u - group.x, p.tokens);
    let first = rows.x;
    head = group.y;
    batch = group.z;
    let end = past() + rows.y;
    let query = first + lane / 16u * 4u;
    var largest = vec4<f32>(LEAST);
    var sum = vec4<f32>(0.0);
    clear_sums();
    for (var key = rows.z; key < end; key += SIDE) {
        var s = dots(lane, 0u, vec2<u32>(first, key), vec2<u32>(rows.y, end));
        let own_key = key + lane % 16u * 4u;
        s.x = scaled(s.x, query, own_key);
        s.y = scaled(s.y, query + 1u, own_key);
        s.z = scaled(s.z, query + 2u, own_key);
        s.w = scaled(s.w, query + 3u, own_key);
        shares[lane] = vec4<f32>(most(s.x), most(s.y), most(s.z), most(s.w));
        workgroupBarrier();
        var top = largest;
        for (var i = 0u; i < 16u; i++) { top = max(top, shares[lane / 16u * 16u + i]); }
        let rescale = exp4(largest - top);
        largest = top;
        s.x = exp4(s.x - vec4<f32>(top.x));
        s.y = exp4(s.y - vec4<f32>(top.y));
        s.z = exp4(s.z - vec4<f32>(top.z));
        s.w = exp4(s.w - vec4<f32>(top.w));
        sum = sum * rescale + vec4<f32>(total(s.x), total(s.y), total(s.z), total(s.w));
        for (var c = 0u; c < COLS; c++) {
            sums[4u * c] *= rescale.x;
            sums[4u * c + 1u] *= rescale.y;
            sums[4u * c + 2u] *= rescale.z;
            sums[4u * c + 3u] *= rescale.w;
        }
        share(lane, s);
        add_rows(lane, 1u, key, end);
    }
    workgroupBarrier();
    shares[lane] = sum;
    workgroupBarrier();
    sum = vec4<f32>(0.0);
    for (var i = 0u; i < 16u; i++) { sum += shares[lane / 16u * 16u + i]; }
    put_sums(lane, first, rows.y, 1.0 / sum);
    if lane % 16u == 0u {
        let logs = largest + log(sum);
        for (var i = 0u; i < 4u; i++) {
            if query + i < rows.y { lse[(batch * p.heads + head) * p.tokens + query + i] = logs[i]; }
        }
    }
}
