// Tiles of both sides in shared memory, k down and m or n across; an invocation brings one block of 4 × 4.
var<workgroup> tile_a: array<vec4<f32>, DEPTH * TILE / 4u>;
var<workgroup> tile_b: array<vec4<f32>, DEPTH * TILE / 4u>;

struct Block { x: vec4<f32>, y: vec4<f32>, z: vec4<f32>, w: vec4<f32> }

// the block of an invocation, in vec4s: along k, along m or n. Eight neighbours store to different banks, and their
// loads fill whole sectors.
fn place(t: u32, k_inner: bool) -> vec2<u32> {
    if k_inner {
        return vec2<u32>(t / 8u % (DEPTH / 4u), t % 8u + 8u * (t / (2u * DEPTH)));
    }
    return vec2<u32>(t / (TILE / 4u), t % (TILE / 4u));
}

fn turned(t: Block) -> Block {
    return Block(
        vec4<f32>(t.x.x, t.y.x, t.z.x, t.w.x), vec4<f32>(t.x.y, t.y.y, t.z.y, t.w.y),
        vec4<f32>(t.x.z, t.y.z, t.z.z, t.w.z), vec4<f32>(t.x.w, t.y.w, t.z.w, t.w.w),
    );
}

// the first half of the invocations brings the left side, the second the right one
fn fetch(lane: u32, batch: u32, first: vec2<u32>, k: u32, k_end: u32) -> Block {
    let t = lane % 128u;
    if lane < 128u {
        let at = place(t, A_K_INNER == 1u) * 4u + vec2<u32>(k, first.x);
        if A_K_INNER == 1u {
            return turned(Block(
                line_a(batch, at.y, at.x, k_end), line_a(batch, at.y + 1u, at.x, k_end),
                line_a(batch, at.y + 2u, at.x, k_end), line_a(batch, at.y + 3u, at.x, k_end),
            ));
        }
        return Block(
            line_a(batch, at.x, at.y, k_end), line_a(batch, at.x + 1u, at.y, k_end),
            line_a(batch, at.x + 2u, at.y, k_end), line_a(batch, at.x + 3u, at.y, k_end),
        );
    }
    let at = place(t, B_K_INNER == 1u) * 4u + vec2<u32>(k, first.y);
    if B_K_INNER == 1u {
        return turned(Block(
            line_b(batch, at.y, at.x, k_end), line_b(batch, at.y + 1u, at.x, k_end),
            line_b(batch, at.y + 2u, at.x, k_end), line_b(batch, at.y + 3u, at.x, k_end),
        ));
    }
    return Block(
        line_b(batch, at.x, at.y, k_end), line_b(batch, at.x + 1u, at.y, k_end),
        line_b(batch, at.x + 2u, at.y, k_end), line_b(batch, at.x + 3u, at.y, k_end),
    );
}

fn put(lane: u32, block: Block) {
    let t = lane % 128u;
    let across = TILE / 4u;
    if lane < 128u {
        let at = place(t, A_K_INNER == 1u);
        let i = at.x * TILE + at.y;
        tile_a[i] = block.x;
        tile_a[i + across] = block.y;
        tile_a[i + 2u * across] = block.z;
        tile_a[i + 3u * across] = block.w;
    } else {
        let at = place(t, B_K_INNER == 1u);
        let i = at.x * TILE + at.y;
        tile_b[i] = block.x;
        tile_b[i + across] = block.y;
        tile_b[i + 2u * across] = block.z;
        tile_b[i + 3u * across] = block.w;
    }
}
