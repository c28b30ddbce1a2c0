// An invocation takes a group.
struct Params { groups: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> w: array<X4>;
@group(0) @binding(2) var<storage, read_write> scales: array<f32>;
@group(0) @binding(3) var<storage, read_write> biases: array<f32>;
const QUADS: u32 = GROUP / 4u;

fn number(i: u32) -> vec4<u32> { return bitcast<vec4<u32>>(widen_X(w[i])); }

// bits that rise as the values do, and back
fn ordered(bits: vec4<u32>) -> vec4<u32> {
    return bits ^ select(vec4<u32>(0x80000000u), vec4<u32>(0xffffffffu), bits >= vec4<u32>(0x80000000u));
}

fn bits_of(ordered: u32) -> u32 { return ordered ^ select(0xffffffffu, 0x80000000u, ordered >= 0x80000000u); }

// of zeros of both signs the first is the least
fn first_zero(first: u32, least: u32) -> u32 {
    for (var i = 0u; i < GROUP; i++) {
        let bits = number(first + i / 4u)[i % 4u];
        if (bits & 0x7fffffffu) == 0u { return bits; }
    }
    return least;
}

struct Line { scale: u32, bias: u32 }

fn line(least: u32, most: u32) -> Line {
    let top = bitcast<u32>(f32((1u << BITS) - 1u));
    let span = bitcast<u32>(bitcast<f32>(most) - bitcast<f32>(least));
    let size = bitcast<u32>(max(bitcast<f32>(quotient(span, top)), 1e-7));
    if BITS == 1u { return Line(size, least); }
    let below = (least & 0x7fffffffu) > (most & 0x7fffffffu);
    let scale = select(size | 0x80000000u, size, below);
    let edge = select(most, least, below);
    let code = bitcast<u32>(round(bitcast<f32>(quotient(edge, scale))));
    if (code & 0x7fffffffu) == 0u { return Line(scale, 0u); }
    return Line(quotient(edge, code), edge);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let own = group_index(group, groups) * 64u + lane;
    if own >= p.groups { return; }
    let first = own * QUADS;
    var least = vec4<u32>(0xffffffffu);
    var most = vec4<u32>(0u);
    for (var i = 0u; i < QUADS; i++) {
        let next = ordered(number(first + i));
        least = min(least, next);
        most = max(most, next);
    }
    var low = bits_of(min(min(least.x, least.y), min(least.z, least.w)));
    let high = bits_of(max(max(most.x, most.y), max(most.z, most.w)));
    if (low & 0x7fffffffu) == 0u { low = first_zero(first, low); }
    let line = line(low, high);
    scales[own] = bitcast<f32>(line.scale);
    biases[own] = bitcast<f32>(line.bias);
    place = own * (GROUP * BITS / 32u);
    for (var i = 0u; i < GROUP; i++) {
        let above = widen_X(w[first + i / 4u])[i % 4u] - bitcast<f32>(line.bias);
        let code = round(bitcast<f32>(quotient(bitcast<u32>(above), line.scale)));
        push(u32(clamp(code, 0.0, f32((1u << BITS) - 1u))));
    }
}
