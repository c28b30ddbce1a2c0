// Rows of elements shorter than a word, at any place: an invocation owns one of `count` words of `y`, of which it keeps
// what is not of these rows. PER elements make a word; places and strides are in elements.
const BITS = 32u / PER;
const MASK = (1u << BITS) - 1u;
struct Params { count: u32, width: u32, y_first: u32, y_stride: u32, x_first: u32, x_stride: u32, rows: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> y: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<u32>;

struct At { row: u32, column: u32, mine: bool }

// where element `j` of a word is among the rows
fn at(word: u32, j: u32) -> At {
    let i = word * PER + j;
    if i < p.y_first { return At(0u, 0u, false); }
    let row = (i - p.y_first) / p.y_stride;
    let column = (i - p.y_first) % p.y_stride;
    return At(row, column, row < p.rows && column < p.width);
}

@compute @workgroup_size(256)
fn rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i >= p.count { return; }
    let number = p.y_first / PER + i;
    var word = y[number];
    for (var j = 0u; j < PER; j++) {
        let to = at(number, j);
        if to.mine {
            let source = p.x_first + to.row * p.x_stride + to.column;
            let value = (x[source / PER] >> (source % PER * BITS)) & MASK;
            word = (word & ~(MASK << (j * BITS))) | (value << (j * BITS));
        }
    }
    y[number] = word;
}

@compute @workgroup_size(256)
fn zeros(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    if i >= p.count { return; }
    let number = p.y_first / PER + i;
    var word = y[number];
    for (var j = 0u; j < PER; j++) {
        if at(number, j).mine { word &= ~(MASK << (j * BITS)); }
    }
    y[number] = word;
}
