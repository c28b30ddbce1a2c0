// One workgroup per head: merges the splits of its keys, each weighted by its share of the softmax.
@group(0) @binding(1) var<storage, read_write> lse: array<f32>;
@group(0) @binding(2) var<storage, read> parts: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> sums: array<vec2<f32>>;
var<workgroup> shares: array<f32, 256>;
var<workgroup> rows: array<vec4<f32>, 256>;

@compute @workgroup_size(256)
fn merge_splits(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = group_index(group, groups);
    if head >= p.heads * p.tokens { return; }
    let width4 = (p.width + 3u) / 4u;
    var top = -1.0e38;
    for (var i = lane; i < p.count; i += 256u) { top = max(top, sums[head * p.count + i].x); }
    shares[lane] = top;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half { shares[lane] = max(shares[lane], shares[lane + half]); }
    }
    workgroupBarrier();
    top = shares[0];
    workgroupBarrier();
    var sum = 0.0;
    for (var i = lane; i < p.count; i += 256u) {
        let part = sums[head * p.count + i];
        sum += part.y * exp1(part.x - top);
    }
    shares[lane] = sum;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half { shares[lane] += shares[lane + half]; }
    }
    workgroupBarrier();
    sum = shares[0];
    var row = vec4<f32>(0.0);
    let c = lane % 64u;
    if c < width4 {
        for (var i = lane / 64u; i < p.count; i += 4u) {
            row += exp1(sums[head * p.count + i].x - top) * parts[(head * p.count + i) * width4 + c];
        }
    }
    rows[lane] = row;
    workgroupBarrier();
    if lane < width4 {
        let total = (rows[lane] + rows[lane + 64u]) + (rows[lane + 128u] + rows[lane + 192u]);
        put_out(head * p.width, 4u * lane, total / sum);
    }
    if lane == 0u { lse[head] = top + log(sum); }
}
