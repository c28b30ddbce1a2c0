// Packed sequences: for each block of rows, its first row and the one past its last, then those of its sequence.
@group(0) @binding(SEQUENCES_AT) var<storage, read> blocks: array<vec4<u32>>;
fn block(index: u32, rows: u32) -> vec4<u32> { return blocks[index]; }
