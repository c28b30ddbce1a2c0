// Taps and their sums for four channels at once.
@group(0) @binding(4) var<storage, read> w: array<X4>;
@group(0) @binding(7) var<storage, read_write> sums: array<f32>;

fn weight(i: u32) -> f32 {
    let quad = widen_X(w[i / 4u]);
    return quad[i % 4u];
}
fn tap(channel: u32, k: u32) -> Num {
    let at = 4u * channel * TAPS + k;
    return vec4<f32>(weight(at), weight(at + TAPS), weight(at + 2u * TAPS), weight(at + 3u * TAPS));
}
fn leave(first: u32, channel: u32, k: u32, sum: Num) {
    let at = first + 4u * channel * TAPS + k;
    sums[at] = sum.x;
    sums[at + TAPS] = sum.y;
    sums[at + 2u * TAPS] = sum.z;
    sums[at + 3u * TAPS] = sum.w;
}
