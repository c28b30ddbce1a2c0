// `y` has `choices` rows of `width` units for each token, `z` one.
struct Params { count: u32, width: u32, choices: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> y: array<Stored>;
@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read_write> z: array<Stored>;

@compute @workgroup_size(256)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i >= p.count { return; }
    let first = i / p.width * p.choices;
    var at = first * p.width + i % p.width;
    var sum = Num(0.0);
    for (var k = 0u; k < p.choices; k++) {
        sum += w[first + k] * widen(y[at]);
        at += p.width;
    }
    z[i] = narrow(sum);
}

@group(0) @binding(3) var<storage, read> dz: array<Stored>;
@group(0) @binding(4) var<storage, read_write> dy: array<Stored>;

@compute @workgroup_size(256)
fn to_rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i >= p.count { return; }
    let row = i / p.width;
    dy[i] = narrow(w[row] * widen(dz[row / p.choices * p.width + i % p.width]));
}
