// Dequantizes rows: eight codes of a group per invocation.
struct Params { count: u32, width: u32, first: u32, rows: u32, last: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<Y4>;

fn dequantized(i: u32) -> Eight {
    let codes = eight(i);
    let group = i / (GROUP / 8u);
    let scale = scale(group);
    let bias = vec4<f32>(bias(group));
    return Eight(codes.x * scale + bias, codes.y * scale + bias);
}

fn put(i: u32, x: Eight) {
    y[2u * i] = narrow_Y(x.x);
    y[2u * i + 1u] = narrow_Y(x.y);
}

@compute @workgroup_size(256)
fn all(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i < p.count { put(i, dequantized(i)); }
}

// those that ids name, of a stretch of the matrix that begins with row `first` and has `rows`
@compute @workgroup_size(256)
fn named(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i >= p.count { return; }
    let id = ids[i / p.width];
    if id >= p.last {
        let none = vec4<f32>(bitcast<f32>(id | 0x7fc00000u));
        put(i, Eight(none, none));
    } else if id >= p.first && id - p.first < p.rows {
        put(i, dequantized((id - p.first) * p.width + i % p.width));
    }
}
