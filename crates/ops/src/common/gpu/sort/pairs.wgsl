// Pairs sorted by an earlier digit.
@group(0) @binding(0) var<storage, read> pairs: array<vec2<u32>>;

fn pair(i: u32) -> vec2<u32> { return pairs[i]; }
