// Eight codes of four rows at once, which lie in one group.
const UNIT: u32 = 8u;
struct Units { x: Eight, y: Eight, z: Eight, w: Eight, factor: vec4<f32>, offset: vec4<f32> }

fn units(line: vec4<u32>, k: u32) -> Units {
    let at = (line + k) / 8u;
    let group = (line + k) / GROUP;
    return Units(
        eight(at.x), eight(at.y), eight(at.z), eight(at.w),
        vec4<f32>(scale(group.x), scale(group.y), scale(group.z), scale(group.w)),
        vec4<f32>(bias(group.x), bias(group.y), bias(group.z), bias(group.w)),
    );
}

fn products(own: Units, row: u32, k: u32) -> vec4<f32> {
    let u = load_a(row + k);
    let v = load_a(row + k + 4u);
    let sums = own.factor * vec4<f32>(
        dot(own.x.x, u) + dot(own.x.y, v), dot(own.y.x, u) + dot(own.y.y, v),
        dot(own.z.x, u) + dot(own.z.y, v), dot(own.w.x, u) + dot(own.w.y, v),
    );
    if BIASES == 5u { return sums; }
    let all = u + v;
    return sums + own.offset * ((all.x + all.y) + (all.z + all.w));
}
