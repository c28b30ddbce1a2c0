// The inverse of a chunk's unit lower triangular matrix: an invocation has a column.
struct Params { chunks: u32, v_heads: u32, size: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> chunks: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> l: array<f32>;
@group(0) @binding(2) var<storage, read_write> a: array<f32>;

var<workgroup> lower: array<f32, 4096>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) j: u32) {
    let at = group_index(group, groups);
    if at >= p.chunks * p.v_heads { return; }
    let chunk = chunks[at / p.v_heads];
    let first = chunk.x * p.v_heads + at % p.v_heads;
    for (var i = 0u; i < chunk.y; i++) { lower[i * 64u + j] = l[(first + i * p.v_heads) * 64u + j]; }
    workgroupBarrier();
    var column: array<f32, 64>;
    for (var i = 0u; i < chunk.y; i++) {
        var x = 0.0;
        if i == j { x = 1.0; }
        for (var m = j; m < i; m++) { x -= lower[i * 64u + m] * column[m]; }
        column[i] = x;
        a[(first + i * p.v_heads) * 64u + j] = x;
    }
}
