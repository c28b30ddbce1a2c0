// One sequence.
fn first_key(query: u32) -> u32 { return 0u; }
fn end_query(key: u32) -> u32 { return p.tokens; }
