// Unsorted ids. Ids out of range are mapped to the largest key.
@group(0) @binding(0) var<storage, read> ids: array<u32>;

fn pair(i: u32) -> vec2<u32> { return vec2<u32>(min(ids[i], p.below), i); }
