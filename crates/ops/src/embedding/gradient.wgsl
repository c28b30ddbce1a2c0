// A workgroup sums 64 units of the rows of `dy` at the places of one id, in order.
struct Params { ids: u32, width: u32, first: u32, rows: u32, places: u32 }
var<immediate> p: Params;
// the id, and where its places begin and end; the places come after all ids
@group(0) @binding(0) var<storage, read> table: array<u32>;
@group(0) @binding(1) var<storage, read> dy: array<Stored>;
@group(0) @binding(2) var<storage, read_write> y: array<Stored>;

fn unit(i: u32, column: u32) -> Num { return widen(dy[table[p.places + i] * p.width + column]); }

@compute @workgroup_size(64)
fn backward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let columns = (p.width + 63u) / 64u;
    let number = group_index(group, groups);
    let column = number % columns * 64u + lane;
    let entry = number / columns;
    if entry >= p.ids || column >= p.width { return; }
    let id = table[3u * entry];
    if id < p.first || id - p.first >= p.rows { return; }
    var i = table[3u * entry + 1u];
    let end = table[3u * entry + 2u];
    var sum = Num(0.0);
    // four reads under way; they are added in order
    for (; i + 4u <= end; i += 4u) {
        let a = unit(i, column);
        let b = unit(i + 1u, column);
        let c = unit(i + 2u, column);
        let d = unit(i + 3u, column);
        sum = (((sum + a) + b) + c) + d;
    }
    for (; i < end; i++) { sum += unit(i, column); }
    y[(id - p.first) * p.width + column] = narrow(sum);
}
