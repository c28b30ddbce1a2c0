// Rows of a quantized matrix lie one after the other, so codes, scales and biases have one value each through all of
// it. Codes of BITS bits fill words, the lowest first. MEANING is 0 for integers, 1 for e2m1 floats, 2 for e4m3 floats;
// SCALES and BIASES are 0 for f32, 1 for f16, 2 for bf16, 3 for powers of two, 4 for e4m3 floats, 5 for none.
@group(0) @binding(1) var<storage, read> words: array<u32>;
@group(0) @binding(3) var<storage, read> scales: array<u32>;
@group(0) @binding(4) var<storage, read> biases: array<u32>;

struct Eight { x: vec4<f32>, y: vec4<f32> }

// Small floats: the bits below the sign, put where an f32 has them, under an exponent that leaves the denormals. Where
// the small exponent is 0 the second product is right, else the first; the smaller is right for every code.
fn e2m1(code: vec4<u32>) -> vec4<f32> {
    let raised = bitcast<vec4<f32>>(((code & vec4<u32>(7u)) << vec4<u32>(22u)) | vec4<u32>(124u << 23u));
    let size = min(raised * 4.0, (raised - 0.125) * 8.0);
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(size) | ((code & vec4<u32>(8u)) << vec4<u32>(28u)));
}

fn e4m3(code: vec4<u32>) -> vec4<f32> {
    let below = code & vec4<u32>(0x7fu);
    let raised = bitcast<vec4<f32>>((below << vec4<u32>(20u)) | vec4<u32>(112u << 23u));
    let size = min(raised * 256.0, (raised - 1.0 / 32768.0) * 512.0);
    let none = select(vec4<u32>(0u), vec4<u32>(0x7fc00000u), below == vec4<u32>(0x7fu));
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(size) | none | ((code & vec4<u32>(0x80u)) << vec4<u32>(24u)));
}

// the four codes at the bottom of a word
fn four(bits: u32) -> vec4<f32> {
    // a whole byte is converted without a shift
    if BITS == 8u && MEANING == 0u { return vec4<f32>(unpack4xU8(bits)); }
    let code = (vec4<u32>(bits) >> vec4<u32>(0u, BITS, 2u * BITS, 3u * BITS)) & vec4<u32>((1u << BITS) - 1u);
    if MEANING == 1u { return e2m1(code); }
    if MEANING == 2u { return e4m3(code); }
    return vec4<f32>(code);
}

// the codes from 4i on: they lie in two words at most
fn quad(i: u32) -> vec4<f32> {
    let word = i * BITS / 8u;
    let shift = i * BITS % 8u * 4u;
    let next = words[word + select(0u, 1u, shift + 4u * BITS > 32u)];
    return four((words[word] >> shift) | ((next << 1u) << (31u - shift)));
}

// the codes from 8i on: they lie in two words at most, too
fn eight(i: u32) -> Eight {
    let word = i * BITS / 4u;
    let shift = i * BITS % 4u * 8u;
    let next = words[word + select(0u, 1u, shift + 8u * BITS > 32u)];
    let low = (words[word] >> shift) | ((next << 1u) << (31u - shift));
    let high = next >> shift;
    if BITS == 4u && MEANING == 0u {
        let even = vec4<f32>(unpack4xU8(low & 0x0f0f0f0fu));
        let odd = vec4<f32>(unpack4xU8((low >> 4u) & 0x0f0f0f0fu));
        return Eight(vec4<f32>(even.x, odd.x, even.y, odd.y), vec4<f32>(even.z, odd.z, even.w, odd.w));
    }
    const MIDDLE = 4u * BITS % 32u;
    if BITS == 8u { return Eight(four(low), four(high)); }
    if BITS <= 4u { return Eight(four(low), four(low >> MIDDLE)); }
    return Eight(four(low), four((low >> MIDDLE) | (high << ((32u - MIDDLE) % 32u))));
}

// the number `i` of a word that holds several
fn stored(word: u32, i: u32, kind: u32) -> f32 {
    let half = word >> (i % 2u * 16u);
    let byte = (word >> (i % 4u * 8u)) & 255u;
    if kind == 0u { return bitcast<f32>(word); }
    if kind == 1u { return unpack2x16float(half & 0xffffu).x; }
    if kind == 2u { return bitcast<f32>(half << 16u); }
    // the least power of two is below the normal range, the largest code means none
    if kind == 3u { return bitcast<f32>(max(byte << 23u, 1u << 22u) | select(0u, 1u << 22u, byte == 255u)); }
    return e4m3(vec4<u32>(byte)).x;
}

// words that hold a number in that storage, as a divisor
fn per_word(kind: u32) -> u32 { return select(select(4u, 2u, kind <= 2u), 1u, kind == 0u); }

fn scale(group: u32) -> f32 { return stored(scales[group / per_word(SCALES)], group, SCALES); }

fn bias(group: u32) -> f32 {
    if BIASES == 5u { return 0.0; }
    return stored(biases[group / per_word(BIASES)], group, BIASES);
}
