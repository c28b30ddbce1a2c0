// Elements of which PER make a word; an invocation puts a word together.
const BITS = 32u / PER;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i * PER >= p.count { return; }
    var word = 0u;
    for (var j = 0u; j < PER; j++) {
        if i * PER + j < p.count {
            let at = source(i * PER + j);
            word |= ((x[at / PER] >> (at % PER * BITS)) & ((1u << BITS) - 1u)) << (j * BITS);
        }
    }
    y[i] = word;
}
