// One workgroup per block of up to 64 rows of one sequence and one gradient; the other side is streamed and its weights are recomputed.
// For dq, queries are owned and keys stream; for dk and dv the other way round, over all heads that share the keys.
@group(0) @binding(1) var<storage, read> lse: array<f32>;
@group(0) @binding(2) var<storage, read> dots_with_o: array<f32>;
@group(0) @binding(3) var<storage, read> own_scored: array<X4>;
@group(0) @binding(4) var<storage, read> streamed_scored: array<X4>;
@group(0) @binding(5) var<storage, read> own_valued: array<X4>;
@group(0) @binding(6) var<storage, read> streamed_valued: array<X4>;
var<private> batch: u32;
var<private> own_head: u32;
var<private> streamed_head: u32;

fn query_row(row: u32, head: u32) -> u32 { return ((batch * p.tokens + row) * p.heads + head) * p.width; }
fn key_row(row: u32, head: u32) -> u32 { return ((batch * p.positions + row) * p.shared_heads + head) * p.width; }

fn own_row(row: u32) -> u32 {
    if OWN_QUERIES == 1u { return query_row(row, own_head); }
    return key_row(row, own_head);
}

fn streamed_row(row: u32) -> u32 {
    if OWN_QUERIES == 1u { return key_row(row, streamed_head); }
    return query_row(row, streamed_head);
}

fn own(which: u32, at: u32) -> vec4<f32> {
    let i = at / 4u;
    if which == 0u {
        if ODD == 0u { return widen_X(own_scored[i]); }
        return shifted(widen_X(own_scored[i]), widen_X(own_scored[min(i + 1u, arrayLength(&own_scored) - 1u)]), at % 4u);
    }
    if ODD == 0u { return widen_X(own_valued[i]); }
    return shifted(widen_X(own_valued[i]), widen_X(own_valued[min(i + 1u, arrayLength(&own_valued) - 1u)]), at % 4u);
}

fn streamed(which: u32, at: u32) -> vec4<f32> {
    let i = at / 4u;
    if which == 0u {
        if ODD == 0u { return widen_X(streamed_scored[i]); }
        return shifted(widen_X(streamed_scored[i]), widen_X(streamed_scored[min(i + 1u, arrayLength(&streamed_scored) - 1u)]), at % 4u);
    }
    if ODD == 0u { return widen_X(streamed_valued[i]); }
    return shifted(widen_X(streamed_valued[i]), widen_X(streamed_valued[min(i + 1u, arrayLength(&streamed_valued) - 1u)]), at % 4u);
}

// of four queries or of one, whichever streams
fn rows_of(queries: vec4<u32>, head: u32) -> vec4<u32> {
    return vec4<u32>((batch * p.heads + head) * p.tokens) + min(queries, vec4<u32>(p.tokens - 1u));
}

fn weights(scores: vec4<f32>, values: vec4<f32>, own: u32, streamed: u32) -> vec4<f32> {
    let following = vec4<u32>(streamed) + vec4<u32>(0u, 1u, 2u, 3u);
    var queries = following;
    var keys = vec4<u32>(own);
    var at = rows_of(queries, streamed_head);
    if OWN_QUERIES == 1u {
        queries = vec4<u32>(own);
        keys = following;
        at = rows_of(queries, own_head);
    }
    let seen = (keys <= queries + vec4<u32>(past())) & (queries < vec4<u32>(p.tokens));
    let logs = vec4<f32>(lse[at.x], lse[at.y], lse[at.z], lse[at.w]);
    let weight = select(vec4<f32>(0.0), exp4(p.scale * scores - logs), seen);
    if OF_VALUES == 1u { return weight; }
    return weight * (values - vec4<f32>(dots_with_o[at.x], dots_with_o[at.y], dots_with_o[at.z], dots_with_o[at.w]));
}

@compute @workgroup_size(256)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = group.y;
    own_head = head;
    batch = group.z;
    let each = p.heads / p.shared_heads;
    var rows = block(group.x, p.positions);
    var heads = vec2<u32>(head * each, head * each + each);
    var begin = max(rows.x, past()) - past();
    var end = rows.w - past();
    if OWN_QUERIES == 1u {
        // the last queries attend to most keys, so they start first
        rows = block(groups.x - 1u - group.x, p.tokens);
        heads = vec2<u32>(head / each, head / each + 1u);
        begin = rows.z;
        end = past() + rows.y;
    }
    clear_sums();
    for (var h = heads.x; h < heads.y; h++) {
        streamed_head = h;
        for (var at = begin; at < end; at += SIDE) {
            let firsts = vec2<u32>(rows.x, at);
            let ends = vec2<u32>(rows.y, end);
            var s = dots(lane, 0u, firsts, ends);
            var d = s;
            if OF_VALUES == 0u { d = dots(lane, 1u, firsts, ends); }
            let row = rows.x + lane / 16u * 4u;
            let streamed_at = at + lane % 16u * 4u;
            s.x = weights(s.x, d.x, row, streamed_at);
            s.y = weights(s.y, d.y, row + 1u, streamed_at);
            s.z = weights(s.z, d.z, row + 2u, streamed_at);
            s.w = weights(s.w, d.w, row + 3u, streamed_at);
            share(lane, s);
            add_rows(lane, OF_VALUES, at, end);
        }
    }
    put_sums(lane, rows.x, rows.y, vec4<f32>(select(p.scale, 1.0, OF_VALUES == 1u)));
}
