// Packed sequences: the start and end of the sequence of each token.
@group(0) @binding(SEQUENCES_AT) var<storage, read> sequences: array<u32>;
fn first_key(query: u32) -> u32 { return sequences[min(query, p.tokens - 1u)]; }
fn end_query(key: u32) -> u32 { return sequences[p.tokens + min(key, p.tokens - 1u)]; }
