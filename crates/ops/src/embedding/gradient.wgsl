// A workgroup sums 64 units of the rows of `dy` whose ids are the same, in the order of their places. A row of the
// result has `width` units; this stretch of the table begins with row `first` and has `rows`.
struct Params { rows: u32, width: u32, first: u32, below: u32 }
var<immediate> p: Params;
// ids and places, sorted
@group(0) @binding(0) var<storage, read> pairs: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> dy: array<Stored>;

// the row, or block, and the unit of it that an invocation sums
fn own(group: vec3<u32>, groups: vec3<u32>, lane: u32) -> vec2<u32> {
    let columns = (p.width + 63u) / 64u;
    let number = group_index(group, groups);
    return vec2<u32>(number / columns, number % columns * 64u + lane);
}

fn unit(i: u32, column: u32) -> Num { return widen(dy[pairs[i].y * p.width + column]); }

// four reads under way; they are added in order
fn add(before: Num, from_place: u32, end: u32, column: u32) -> Num {
    var sum = before;
    var i = from_place;
    for (; i + 4u <= end; i += 4u) {
        let a = unit(i, column);
        let b = unit(i + 1u, column);
        let c = unit(i + 2u, column);
        let d = unit(i + 3u, column);
        sum = (((sum + a) + b) + c) + d;
    }
    for (; i < end; i++) { sum += unit(i, column); }
    return sum;
}

@group(0) @binding(2) var<storage, read_write> part: array<Num>;

// The sums of blocks that have a single id: an id with very many places is not left to one workgroup.
@compute @workgroup_size(64)
fn blocks(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let mine = own(group, groups, lane);
    let block = mine.x;
    let column = mine.y;
    if block >= p.rows || column >= p.width { return; }
    let id = pairs[block * BLOCK].x;
    if id >= p.below || id != pairs[block * BLOCK + BLOCK - 1u].x { return; }
    part[block * p.width + column] = add(Num(0.0), block * BLOCK, (block + 1u) * BLOCK, column);
}

@group(0) @binding(2) var<storage, read> parts: array<Num>;
// where the pairs of each id begin
@group(0) @binding(3) var<storage, read> starts: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<Stored>;

// Every row of the stretch: zero where no id names it.
@compute @workgroup_size(64)
fn rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let mine = own(group, groups, lane);
    let row = mine.x;
    let column = mine.y;
    if row >= p.rows || column >= p.width { return; }
    let first = starts[p.first + row];
    let end = starts[p.first + row + 1u];
    // up to the first whole block, whole blocks, what is left
    var block = (first + BLOCK - 1u) / BLOCK;
    var place = min(block * BLOCK, end);
    var sum = add(Num(0.0), first, place, column);
    for (; place + BLOCK <= end; place += BLOCK) {
        sum += parts[block * p.width + column];
        block++;
    }
    y[row * p.width + column] = narrow(add(sum, place, end, column));
}
