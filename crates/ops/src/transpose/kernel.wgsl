// x is [outer, rows, middle, columns, inner] and y is [outer, columns, middle, rows, inner]; lengths of units.
struct Params { count: u32, rows: u32, middle: u32, columns: u32, inner: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<Unit>;
@group(0) @binding(1) var<storage, read_write> y: array<Unit>;

// where unit i of y is in x
fn source(i: u32) -> u32 {
    let row = i / p.inner;
    let block = row / p.rows;
    let plane = block / p.middle;
    let outer = plane / p.columns;
    return (((outer * p.rows + row % p.rows) * p.middle + block % p.middle) * p.columns + plane % p.columns) * p.inner + i % p.inner;
}
