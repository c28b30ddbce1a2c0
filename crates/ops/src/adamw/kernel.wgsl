// One vec4 of weights per invocation, in place.
struct Params { quads: u32, beta1: f32, beta2: f32, rest1: f32, rest2: f32, keep: f32, rate: f32, root: f32, eps: f32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> weights: array<P4>;
@group(0) @binding(1) var<storage, read_write> m: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> grad: array<G4>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i >= p.quads { return; }
    let g = widen_G(grad[i]);
    let mean = p.beta1 * m[i] + p.rest1 * g;
    let square = p.beta2 * v[i] + p.rest2 * g * g;
    let down = sqrt(square) * p.root + p.eps;
    weights[i] = narrow_P(widen_P(weights[i]) * p.keep - p.rate * mean / down);
    m[i] = mean;
    v[i] = square;
}
