// Elements that do not begin or end at whole vec4s.

// four elements out of eight
fn shifted(x: vec4<f32>, y: vec4<f32>, by: u32) -> vec4<f32> {
    switch by {
        case 0u: { return x; }
        case 1u: { return vec4<f32>(x.yzw, y.x); }
        case 2u: { return vec4<f32>(x.zw, y.xy); }
        default: { return vec4<f32>(x.w, y.xyz); }
    }
}

// zeros from the end on
fn until(x: vec4<f32>, at: u32, end: u32) -> vec4<f32> {
    return select(x, vec4<f32>(0.0), vec4<u32>(at) + vec4<u32>(0u, 1u, 2u, 3u) >= vec4<u32>(end));
}
