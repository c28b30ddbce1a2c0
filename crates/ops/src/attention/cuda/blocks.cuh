// What the kernels of attention share.
#define NEGATIVE_INFINITY __uint_as_float(0xff800000u)

struct Params { u32 tokens, positions, heads, shared_heads; float scale; u32 is_packed; };
// Rows of one sequence that a block computes, and the sequence; `past` keys lie before the first query.
struct Rows { u32 first, end, start, stop, past; };

FN Rows rows_of(u32 block, u32 rows, const uint4* blocks, const Params& p) {
    u32 past = p.positions - p.tokens;
    if (p.is_packed) {
        uint4 b = blocks[block];
        return {b.x, b.y, b.z, b.w, past};
    }
    return {block * 64, min(block * 64 + 64, rows), 0, p.positions, past};
}
