// An invocation takes four groups, whose scales make a word. POWERS is 1 for scales that are powers of two.
struct Params { groups: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> w: array<X4>;
@group(0) @binding(2) var<storage, read_write> scales: array<u32>;
const QUADS: u32 = GROUP / 4u;

fn number(i: u32) -> vec4<u32> { return bitcast<vec4<u32>>(widen_X(w[i])); }

// the e2m1 float nearest to a value; of two the smaller
fn e2m1(bits: u32) -> u32 {
    let size = vec4<f32>(abs(bitcast<f32>(bits)));
    let low = select(vec4<u32>(0u), vec4<u32>(1u), size > vec4<f32>(0.25, 0.75, 1.25, 1.75));
    let high = select(vec4<u32>(0u), vec4<u32>(1u), size > vec4<f32>(2.5, 3.5, 5.0, 5.0));
    let code = low.x + low.y + low.z + low.w + high.x + high.y + high.z;
    return select(0u, code | ((bits >> 31u) << 3u), code > 0u);
}

// the e4m3 float nearest to a value, ties to even; at most 448
fn e4m3(bits: u32) -> u32 {
    let size = bits & 0x7fffffffu;
    // half of the last bit that stays, less one where that bit is even, carries into it
    var code = ((size + 0x7ffffu + ((size >> 20u) & 1u)) >> 20u) - (120u << 3u);
    // below 1/64
    if size < 0x3c800000u { code = u32(round(bitcast<f32>(size) * 512.0)); }
    return min(code, 0x7eu) | ((bits >> 31u) << 7u);
}

// the bits of the number of an e4m3 code without a sign
fn small(code: u32) -> u32 {
    if code < 8u { return bitcast<u32>(f32(code) / 512.0); }
    return (code << 20u) + (120u << 23u);
}

struct Scale { code: u32, bits: u32 }

fn scale_of(most: u32) -> Scale {
    let least = quotient(most, bitcast<u32>(select(6.0, 448.0, BITS == 8u)));
    if POWERS == 0u {
        let code = e4m3(least);
        return Scale(code, small(code));
    }
    if most == 0u { return Scale(127u, 0x3f800000u); }
    // up to the next power of two, unless it is one; what is below the least power becomes that
    let code = min((least >> 23u) + select(0u, 1u, (least & 0x7fffffu) != 0u), 254u);
    return Scale(code, max(code << 23u, 1u << 22u));
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let own = group_index(group, groups) * 64u + lane;
    if own * 4u >= p.groups { return; }
    var codes = 0u;
    place = own * (4u * GROUP * BITS / 32u);
    for (var g = 0u; g < 4u && own * 4u + g < p.groups; g++) {
        let first = (own * 4u + g) * QUADS;
        var most = vec4<u32>(0u);
        for (var i = 0u; i < QUADS; i++) { most = max(most, number(first + i) & vec4<u32>(0x7fffffffu)); }
        let scale = scale_of(max(max(most.x, most.y), max(most.z, most.w)));
        codes |= scale.code << (8u * g);
        for (var i = 0u; i < GROUP; i++) {
            var x = 0u;
            if scale.bits != 0u { x = quotient(number(first + i / 4u)[i % 4u], scale.bits); }
            if BITS == 4u { push(e2m1(x)); } else { push(e4m3(x)); }
        }
    }
    scales[own] = codes;
}
