// Products of a warp on matrix units, from A100 on.

// --- copies to shared memory, 16 bytes each: zeros where there is nothing to read

FN void copy_16(u32 to, const void* from, bool is_there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(is_there ? 16 : 0) : "memory");
}
FN void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
FN void copies_wait() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

// --- tiles of rows of `width` numbers of bf16, a multiple of 64; the pieces of 16 bytes of a row are permuted so that
// eight rows are read without conflicts

FN u32 place(u32 width, u32 row, u32 piece) { return row * width * 2 + ((piece ^ (row & 7)) << 4); }

// Fetches 64 rows of heads of WIDTH numbers, with COUNT threads; rows from `count` on are zeros.
template <int COUNT> FN void load_tile(u16* tile, const u16* from, u64 stride, u32 count) {
    for (u32 i = threadIdx.x; i < 64 * WIDTH / 8; i += COUNT) {
        u32 row = i / (WIDTH / 8), piece = i % (WIDTH / 8);
        bool is_there = row < count;
        copy_16(address(tile) + place(WIDTH, row, piece), from + (is_there ? row * stride + piece * 8 : 0), is_there);
    }
}

FN void fragments(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
FN void fragments_t(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
// A left factor: 16 rows, 16 numbers of each.
FN void left(u32 (&r)[4], u32 tile, u32 width, u32 row, u32 step) {
    u32 lane = threadIdx.x & 31;
    fragments(r, tile + place(width, row + (lane & 15), step * 2 + (lane >> 4)));
}
// Two right factors whose columns are 16 rows of a tile, 16 numbers of each.
FN void right_rows(u32 (&r)[4], u32 tile, u32 width, u32 row, u32 step) {
    u32 lane = threadIdx.x & 31;
    fragments(r, tile + place(width, row + (lane & 7) + (lane >> 4) * 8, step * 2 + (lane >> 3 & 1)));
}
// Two right factors of 16 rows of a tile and 16 columns from 8 · `piece` on.
FN void right_columns(u32 (&r)[4], u32 tile, u32 width, u32 row, u32 piece) {
    u32 lane = threadIdx.x & 31;
    fragments_t(r, tile + place(width, row + (lane & 15), piece + (lane >> 4)));
}
// d += a · b of 16 × 16 and 16 × 8.
FN void product(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
