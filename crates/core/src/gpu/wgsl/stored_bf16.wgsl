alias NAME4 = vec2<u32>;
fn widen_NAME(x: NAME4) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(x.x << 16u, x.x & 0xffff0000u, x.y << 16u, x.y & 0xffff0000u));
}
// rounds to nearest, ties to even; NaN stays NaN
fn narrow_NAME(x: vec4<f32>) -> NAME4 {
    let bits = bitcast<vec4<u32>>(x);
    let rounded = (bits + vec4<u32>(0x7fffu) + ((bits >> vec4<u32>(16u)) & vec4<u32>(1u))) >> vec4<u32>(16u);
    let none = (bits & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
    let half = select(rounded, vec4<u32>(0x7fc0u), none);
    return vec2<u32>(half.x | (half.y << 16u), half.z | (half.w << 16u));
}
