// needs f16
// Fragments of 16 × 16 f16 with f32 sums, as NVIDIA's GPUs have them.
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sums = coop_mat16x16<f32, C>;
const FRAGMENT: u32 = 16u;
// the unit that an invocation moves: 16 bytes, in elements of the tiles
const UNIT: u32 = 8u;
const ELEMENT: u32 = 4u;
struct Unit { x: vec4<f16>, y: vec4<f16> }
@group(0) @binding(0) var<storage, read> a: array<vec4<f16>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<f16>>;
var<workgroup> tile_a: array<vec4<f16>, 1280>;
var<workgroup> tile_b: array<vec4<f16>, 1280>;

fn before(x: vec4<f16>, at: u32, end: u32) -> vec4<f16> {
    return select(vec4<f16>(), x, vec4<u32>(at) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(end));
}

fn unit_a(at: u32, inner: u32, end: u32) -> Unit {
    let i = at / 4u;
    if EDGE == 0u { return Unit(a[i], a[i + 1u]); }
    // the last unit of a line may be half a one
    let next = min(i + 1u, arrayLength(&a) - 1u);
    return Unit(before(a[i], inner, end), before(a[next], inner + 4u, end));
}

fn unit_b(at: u32, inner: u32, end: u32) -> Unit {
    let i = at / 4u;
    if EDGE == 0u { return Unit(b[i], b[i + 1u]); }
    let next = min(i + 1u, arrayLength(&b) - 1u);
    return Unit(before(b[i], inner, end), before(b[next], inner + 4u, end));
}

fn put_a(slot: u32, unit: Unit) {
    tile_a[slot] = unit.x;
    tile_a[slot + 1u] = unit.y;
}

fn put_b(slot: u32, unit: Unit) {
    tile_b[slot] = unit.x;
    tile_b[slot + 1u] = unit.y;
}
