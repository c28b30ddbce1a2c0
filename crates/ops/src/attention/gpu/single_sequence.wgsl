// One sequence: a block's first row and the one past its last, then those of all rows.
fn block(index: u32, rows: u32) -> vec4<u32> { return vec4<u32>(index * SIDE, min(index * SIDE + SIDE, rows), 0u, rows); }
