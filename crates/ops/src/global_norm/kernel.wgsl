// Sums of squares. Numbers whose squares f32 cannot hold go to sums of their own, scaled by powers of two: large ones,
// ordinary ones and small ones, as x, y and z (Blue 1978, "A portable Fortran program to find the Euclidean norm").
const LARGE = 1.1258999e15; // 2^50
const SMALL = 8.8817842e-16; // 2^-50
const DOWN = 3.3087225e-24; // 2^-78
const UP = 3.0223145e23; // 2^78
struct Params { n: u32, first: u32, groups: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> sums: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> x: array<X4>;

fn whole(sum: vec3<f32>, lane: Lane) -> vec3<f32> {
    let large = group_sum(sum.x, lane);
    let ordinary = group_sum(sum.y, lane);
    let small = group_sum(sum.z, lane);
    return vec3<f32>(large, ordinary, small);
}

@compute @workgroup_size(WG)
fn squares(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, lane: Lane) {
    let number = group_index(group, groups);
    if number >= p.groups { return; }
    var large = vec4<f32>(0.0);
    var ordinary = vec4<f32>(0.0);
    var small = vec4<f32>(0.0);
    for (var i = number * WG + lane.index; i * 4u < p.n; i += p.groups * WG) {
        var values = widen_X(x[i]);
        // values past the end are undefined
        values = select(vec4<f32>(0.0), values, vec4<u32>(4u * i) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.n));
        let size = abs(values);
        let above = size > vec4<f32>(LARGE);
        let below = size < vec4<f32>(SMALL);
        let down = select(vec4<f32>(0.0), values * DOWN, above);
        let up = select(vec4<f32>(0.0), values * UP, below);
        let between = select(values, vec4<f32>(0.0), above | below);
        large += down * down;
        small += up * up;
        ordinary += between * between;
    }
    let sum = whole(vec3<f32>(dot(large, vec4<f32>(1.0)), dot(ordinary, vec4<f32>(1.0)), dot(small, vec4<f32>(1.0))), lane);
    if lane.index == 0u { sums[p.first + number] = vec4<f32>(sum, 0.0); }
}

@group(0) @binding(1) var<storage, read_write> norm: array<f32>;

@compute @workgroup_size(WG)
fn root(lane: Lane) {
    var sum = vec3<f32>(0.0);
    for (var i = lane.index; i < p.n; i += WG) { sum += sums[i].xyz; }
    sum = whole(sum, lane);
    if lane.index != 0u { return; }
    if sum.x > 0.0 {
        norm[0] = UP * sqrt(sum.x + sum.y * DOWN * DOWN);
    } else if sum.y == 0.0 {
        norm[0] = DOWN * sqrt(sum.z);
    } else {
        norm[0] = sqrt(sum.y + sum.z * DOWN * DOWN);
    }
}
