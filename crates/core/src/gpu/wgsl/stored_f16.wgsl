alias NAME4 = vec2<u32>;
fn widen_NAME(x: NAME4) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(x.x), unpack2x16float(x.y));
}
// rounds to the nearest f16, ties to even; the built-in packing leaves rounding and overflow to the driver
fn narrow1_NAME(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let size = bits & 0x7fffffffu;
    if size > 0x7f800000u { return sign | 0x7e00u; }
    if size >= 0x477ff000u { return sign | 0x7c00u; }
    if size < 0x38800000u {
        // below the smallest normal value: units of 2^-24
        if size < 0x33000000u { return sign; }
        let shift = 126u - (size >> 23u);
        let whole = (size & 0x7fffffu) | 0x800000u;
        let kept = whole >> shift;
        let rest = whole & ((1u << shift) - 1u);
        let tie = 1u << (shift - 1u);
        return sign | (kept + select(0u, 1u, rest > tie || (rest == tie && (kept & 1u) == 1u)));
    }
    return sign | ((size - 0x38000000u + 0xfffu + ((size >> 13u) & 1u)) >> 13u);
}
fn narrow_NAME(x: vec4<f32>) -> NAME4 {
    return vec2<u32>(narrow1_NAME(x.x) | (narrow1_NAME(x.y) << 16u), narrow1_NAME(x.z) | (narrow1_NAME(x.w) << 16u));
}
