// Four elements of four rows at once.
const UNIT: u32 = 4u;
struct Units { x: vec4<f32>, y: vec4<f32>, z: vec4<f32>, w: vec4<f32> }

fn units(line: vec4<u32>, k: u32) -> Units {
    return Units(
        until(load_b(line.x + k), k, p.k), until(load_b(line.y + k), k, p.k),
        until(load_b(line.z + k), k, p.k), until(load_b(line.w + k), k, p.k),
    );
}

fn products(own: Units, row: u32, k: u32) -> vec4<f32> {
    let v = until(load_a(row + k), k, p.k);
    return vec4<f32>(dot(v, own.x), dot(v, own.y), dot(v, own.z), dot(v, own.w));
}
