// Adds up, in order, what several workgroups summed of each result: their sums lie one matrix after the other.
@group(0) @binding(0) var<storage, read> parts: array<vec4<f32>>;

@compute @workgroup_size(256)
fn sum(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    let across = (p.n + 3u) / 4u;
    let matrix = p.m * across;
    let batch = i / matrix;
    // what `k` holds here is the number of products
    if batch >= p.k { return; }
    var total = vec4<f32>(0.0);
    for (var split = 0u; split < p.splits; split++) {
        total += parts[(batch * p.splits + split) * matrix + i % matrix];
    }
    put_c(batch, i % matrix / across, i % across * 4u, total);
}
