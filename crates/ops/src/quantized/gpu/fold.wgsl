// The gradients of scales and biases from those of values: an invocation takes eight of a group, LANES neighbours share
// one and add up in order.
struct Params { count: u32, width: u32, first: u32, rows: u32, last: u32 }
var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> dw: array<X4>;
@group(0) @binding(2) var<storage, read_write> dscales: array<f32>;
@group(0) @binding(5) var<storage, read_write> dbiases: array<f32>;
// ids and places, sorted, and where those of each id begin
@group(0) @binding(6) var<storage, read> pairs: array<vec2<u32>>;
@group(0) @binding(7) var<storage, read> starts: array<u32>;
const LANES: u32 = GROUP / 8u;
var<workgroup> shares: array<vec2<f32>, 256>;

fn gradient(i: u32) -> Eight { return Eight(widen_X(dw[2u * i]), widen_X(dw[2u * i + 1u])); }

fn sum(x: vec4<f32>) -> f32 { return (x.x + x.y) + (x.z + x.w); }

fn fold(i: u32, gradient: Eight, inside: bool, lane: u32) {
    if inside {
        let codes = eight(i);
        shares[lane] = vec2<f32>(
            dot(gradient.x, codes.x) + dot(gradient.y, codes.y), sum(gradient.x) + sum(gradient.y)
        );
    }
    workgroupBarrier();
    if inside && lane % LANES == 0u {
        var total = shares[lane];
        for (var other = 1u; other < LANES; other++) { total += shares[lane + other]; }
        dscales[i / LANES] = total.x;
        dbiases[i / LANES] = total.y;
    }
}

@compute @workgroup_size(256)
fn all(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = group_index(group, groups) * 256u + lane;
    let inside = i < p.count;
    var own: Eight;
    if inside { own = gradient(i); }
    fold(i, own, inside, lane);
}

// rows of `dw` that belong to the same row of codes are added up first; a stretch of the codes begins with row `first`
// and has `rows`
@compute @workgroup_size(256)
fn named(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let columns = (p.width + 255u) / 256u;
    let number = group_index(group, groups);
    let column = number % columns * 256u + lane;
    let row = number / columns;
    if row >= p.rows { return; }
    let inside = column < p.width;
    var own: Eight;
    if inside {
        for (var i = starts[p.first + row]; i < starts[p.first + row + 1u]; i++) {
            let next = gradient(pairs[i].y * p.width + column);
            own = Eight(own.x + next.x, own.y + next.y);
        }
    }
    fold(row * p.width + column, own, inside, lane);
}
