// Products with the matrices of experts: `outer` rows of `width` values each. A sum has `k` terms, a row of results `n`
// values; the left side's rows are `stride` values apart, and `sharers` choices in turn have the same one.
struct Params { n: u32, k: u32, stride: u32, outer: u32, width: u32, sharers: u32, experts: u32, jobs: u32 }
var<immediate> p: Params;
const NONE = 0xffffffffu;

// the value of rows whose id is out of range
fn no_number(id: u32) -> vec4<f32> { return vec4<f32>(bitcast<f32>(id | 0x7fc00000u)); }
