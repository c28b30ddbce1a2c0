// A few lines `a` against many lines `b`, which are read once, in storage order: LANES invocations share the sum of
// four results, and sums of each of the few lines go side by side.
const SETS: u32 = 256u / LANES;
var<workgroup> shares: array<vec4<f32>, 256>;

fn quad_a(base: u32, line: u32, k: u32) -> vec4<f32> {
    let r = min(line, p.m - 1u);
    if A_K_INNER == 1u { return until(load_a(base + r * p.a_stride + k), k, p.k); }
    let last = p.k - 1u;
    let x = vec4<f32>(
        load_a(base + k * p.a_stride + r).x,
        load_a(base + min(k + 1u, last) * p.a_stride + r).x,
        load_a(base + min(k + 2u, last) * p.a_stride + r).x,
        load_a(base + min(k + 3u, last) * p.a_stride + r).x,
    );
    return until(x, k, p.k);
}

// four lines, of which those past the end repeat the last
fn line_b(base: u32, outer: u32, outer_end: u32, inner: u32) -> vec4<f32> {
    return load_b(base + min(outer, outer_end - 1u) * p.b_stride + inner);
}

@compute @workgroup_size(256)
fn few(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let each = (p.n + 4u * SETS - 1u) / (4u * SETS);
    let batch = group_index(group, groups) / each;
    if batch >= p.splits { return; }
    var own = vec2<u32>(lane / LANES, lane % LANES);
    var step = 1u;
    if B_K_INNER == 0u {
        own = vec2<u32>(lane % SETS, lane / SETS);
        step = SETS;
    }
    let n = (group_index(group, groups) % each * SETS + own.x) * 4u;
    let base_a = p.a_at + batch * p.a_batch;
    let base_b = p.b_at + batch * p.b_batch;
    var sums: array<vec4<f32>, FEW>;
    for (var r = 0u; r < FEW; r++) { sums[r] = vec4<f32>(0.0); }
    if n < p.n {
        for (var k = own.y * 4u; k < p.k; k += 4u * LANES) {
            if B_K_INNER == 1u {
                let x = until(line_b(base_b, n, p.n, k), k, p.k);
                let y = until(line_b(base_b, n + 1u, p.n, k), k, p.k);
                let z = until(line_b(base_b, n + 2u, p.n, k), k, p.k);
                let w = until(line_b(base_b, n + 3u, p.n, k), k, p.k);
                for (var r = 0u; r < FEW; r++) {
                    let v = quad_a(base_a, r, k);
                    sums[r] += vec4<f32>(dot(v, x), dot(v, y), dot(v, z), dot(v, w));
                }
            } else {
                let x = line_b(base_b, k, p.k, n);
                let y = line_b(base_b, k + 1u, p.k, n);
                let z = line_b(base_b, k + 2u, p.k, n);
                let w = line_b(base_b, k + 3u, p.k, n);
                for (var r = 0u; r < FEW; r++) {
                    let v = quad_a(base_a, r, k);
                    sums[r] += v.x * x + v.y * y + v.z * z + v.w * w;
                }
            }
        }
    }
    for (var r = 0u; r < FEW; r++) {
        workgroupBarrier();
        shares[lane] = sums[r];
        for (var half = LANES / 2u; half > 0u; half /= 2u) {
            workgroupBarrier();
            if own.y < half { shares[lane] += shares[lane + half * step]; }
        }
        if own.y == 0u && r < p.m { put_few(batch, r, n, shares[lane]); }
    }
}
