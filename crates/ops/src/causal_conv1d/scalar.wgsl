// Taps and their sums for one channel.
@group(0) @binding(4) var<storage, read> w: array<f32>;
@group(0) @binding(7) var<storage, read_write> sums: array<f32>;

fn tap(channel: u32, k: u32) -> Num { return w[channel * TAPS + k]; }
fn leave(first: u32, channel: u32, k: u32, sum: Num) { sums[first + channel * TAPS + k] = sum; }
