// The ids as they came. One that names nothing is greater than all that do.
@group(0) @binding(0) var<storage, read> ids: array<u32>;

fn pair(i: u32) -> vec2<u32> { return vec2<u32>(min(ids[i], p.below), i); }
