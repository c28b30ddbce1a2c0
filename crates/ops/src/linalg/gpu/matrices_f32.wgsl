// Fragments of 8 × 8 f32, as Apple's GPUs have them. The text of the right side comes before.
alias Left = coop_mat8x8<f32, A>;
alias Right = coop_mat8x8<f32, B>;
alias Sums = coop_mat8x8<f32, C>;
const FRAGMENT: u32 = 8u;
// the unit that an invocation moves: 16 bytes, in elements of the tiles, which Metal loads fragments from by element
const UNIT: u32 = 4u;
const ELEMENT: u32 = 1u;
struct Unit { x: vec4<f32> }
@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;
var<workgroup> tile_a: array<f32, 2304>;
var<workgroup> tile_b: array<f32, 2304>;

fn before(x: vec4<f32>, at: u32, end: u32) -> vec4<f32> {
    return select(vec4<f32>(), x, vec4<u32>(at) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(end));
}

fn unit_a(at: u32, inner: u32, end: u32) -> Unit {
    if EDGE == 0u { return Unit(a[at / 4u]); }
    return Unit(before(a[at / 4u], inner, end));
}

fn unit_b(at: u32, inner: u32, end: u32) -> Unit {
    if EDGE == 0u { return Unit(load_b(at)); }
    return Unit(before(load_b(at), inner, end));
}

fn put_a(slot: u32, unit: Unit) {
    tile_a[slot] = unit.x.x;
    tile_a[slot + 1u] = unit.x.y;
    tile_a[slot + 2u] = unit.x.z;
    tile_a[slot + 3u] = unit.x.w;
}

fn put_b(slot: u32, unit: Unit) {
    tile_b[slot] = unit.x.x;
    tile_b[slot + 1u] = unit.x.y;
    tile_b[slot + 2u] = unit.x.z;
    tile_b[slot + 3u] = unit.x.w;
}
