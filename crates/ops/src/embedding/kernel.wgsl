// Rows of a stretch of the table, which begins with row `first` and has `rows`.
struct Params { count: u32, width: u32, first: u32, rows: u32, vocabulary: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<Unit>;
@group(0) @binding(2) var<storage, read_write> y: array<Unit>;

@compute @workgroup_size(256)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i >= p.count { return; }
    let id = ids[i / p.width];
    if id >= p.vocabulary {
        // all bits set are NaN in every floating type
        y[i] = Unit(0xffffffffu);
    } else if id >= p.first && id - p.first < p.rows {
        y[i] = x[(id - p.first) * p.width + i % p.width];
    }
}
