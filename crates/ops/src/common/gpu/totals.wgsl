// Sums over the rows of `x`, in order: 8 neighbouring vec4s and 32 slices of the rows make a workgroup.
struct Params { rows: u32, width: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
var<workgroup> slices: array<vec4<f32>, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = group_index(group, groups) * 8u;
    if first >= p.width { return; }
    let column = first + lane % 8u;
    let each = (p.rows + 31u) / 32u;
    let start = lane / 8u * each;
    var sum = vec4<f32>(0.0);
    if column < p.width {
        for (var row = start; row < min(start + each, p.rows); row++) { sum += x[row * p.width + column]; }
    }
    slices[lane] = sum;
    workgroupBarrier();
    if lane < 8u && column < p.width {
        for (var i = 1u; i < 32u; i++) { sum += slices[i * 8u + lane]; }
        y[column] = sum;
    }
}
