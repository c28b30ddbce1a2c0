// Writes words of `y` from bytes of `x` that start in the middle of a word.
struct Params { n: u32, first: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i < p.n {
        let word = p.first / 4u + i;
        let shift = (p.first % 4u) * 8u;
        let next = x[min(word + 1u, arrayLength(&x) - 1u)];
        y[i] = (x[word] >> shift) | (next << (32u - shift));
    }
}
