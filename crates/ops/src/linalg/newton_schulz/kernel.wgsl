// The matrix over its norm, in two stages. Squares are of values over the largest, so that none is too large.
struct Params { quads: u32, parts: u32, eps: f32, elements: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> sums: array<vec2<f32>>;

// elements past the end are 0
fn numbers(i: u32) -> vec4<f32> {
    return select(vec4<f32>(0.0), x[i], vec4<u32>(4u * i) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.elements));
}

// of each part, the largest magnitude and the sum of squares over it
@compute @workgroup_size(WG)
fn squares(@builtin(workgroup_id) group: vec3<u32>, lane: Lane) {
    let each = (p.quads + p.parts - 1u) / p.parts;
    let first = group.x * each + lane.index;
    let end = min(p.quads, group.x * each + each);
    var most = 0.0;
    for (var i = first; i < end; i += WG) {
        let size = abs(numbers(i));
        most = max(most, max(max(size.x, size.y), max(size.z, size.w)));
    }
    most = group_max(most, lane);
    var sum = 0.0;
    for (var i = first; i < end; i += WG) {
        let part = select(vec4<f32>(0.0), numbers(i) / most, most > 0.0);
        sum += dot(part, part);
    }
    sum = group_sum(sum, lane);
    if lane.index == 0u { sums[group.x] = vec2<f32>(most, sum); }
}

@group(0) @binding(1) var<storage, read> parts: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

// each workgroup puts the parts together for itself; no more than WG of them
@compute @workgroup_size(WG)
fn divided(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, lane: Lane) {
    var part = vec2<f32>(0.0);
    if lane.index < p.parts { part = parts[lane.index]; }
    let most = group_max(part.x, lane);
    let share = select(0.0, part.x / most, most > 0.0);
    let norm = most * sqrt(group_sum(part.y * share * share, lane));
    let i = group_index(group, groups) * WG + lane.index;
    if i < p.quads { y[i] = x[i] / (norm + p.eps); }
}
