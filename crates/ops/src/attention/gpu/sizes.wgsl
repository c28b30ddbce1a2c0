struct Params { tokens: u32, positions: u32, heads: u32, shared_heads: u32, width: u32, scale: f32, count: u32 }
var<immediate> p: Params;

// keys before the first query
fn past() -> u32 { return p.positions - p.tokens; }
