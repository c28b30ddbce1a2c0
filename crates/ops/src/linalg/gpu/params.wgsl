// The sizes of a product and where its matrices lie: the first element, from line to line, from matrix to matrix.
struct Params {
    m: u32, n: u32, k: u32,
    // elements of k that one workgroup sums, and how many workgroups share them
    part: u32, splits: u32,
    a_at: u32, a_stride: u32, a_batch: u32,
    b_at: u32, b_stride: u32, b_batch: u32,
    c_at: u32, c_stride: u32, c_batch: u32,
    alpha: f32, beta: f32,
}
var<immediate> p: Params;
