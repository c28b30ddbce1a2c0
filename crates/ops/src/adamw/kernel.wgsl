// One vec4 of weights per invocation, in place.
struct Params {
    quads: u32,
    beta1: f32,
    beta2: f32,
    gradient_share1: f32,
    gradient_share2: f32,
    weight_factor: f32,
    step_size: f32,
    root_factor: f32,
    eps: f32,
}
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
    let mean = p.beta1 * m[i] + p.gradient_share1 * g;
    let square = p.beta2 * v[i] + p.gradient_share2 * g * g;
    let denominator = sqrt(square) * p.root_factor + p.eps;
    weights[i] = narrow_P(widen_P(weights[i]) * p.weight_factor - p.step_size * mean / denominator);
    m[i] = mean;
    v[i] = square;
}
