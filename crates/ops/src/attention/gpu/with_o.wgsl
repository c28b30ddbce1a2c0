// The dot product of each result with its gradient, [B, A, T]: one invocation each.
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@group(0) @binding(1) var<storage, read> o: array<X4>;
@group(0) @binding(2) var<storage, read> d: array<X4>;

fn load_o(at: u32) -> vec4<f32> {
    let i = at / 4u;
    if ODD == 0u { return widen_X(o[i]); }
    return shifted(widen_X(o[i]), widen_X(o[min(i + 1u, arrayLength(&o) - 1u)]), at % 4u);
}

fn load_d(at: u32) -> vec4<f32> {
    let i = at / 4u;
    if ODD == 0u { return widen_X(d[i]); }
    return shifted(widen_X(d[i]), widen_X(d[min(i + 1u, arrayLength(&d) - 1u)]), at % 4u);
}

@compute @workgroup_size(64)
fn with_o(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group_index(group, groups) * 64u + lane;
    // what `count` holds here is the number of rows
    if row >= p.count { return; }
    var sum = 0.0;
    for (var i = 0u; i < p.width; i += 4u) {
        let at = row * p.width + i;
        sum += dot(until(load_o(at), i, p.width), until(load_d(at), i, p.width));
    }
    let token = row / p.heads;
    out[(token / p.tokens * p.heads + row % p.heads) * p.tokens + token % p.tokens] = sum;
}
