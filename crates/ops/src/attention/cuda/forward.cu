// Causal attention, keys streaming past: a block of four warps has 64 queries of a head, a warp 16 of them.
//
// Scores are products of bf16 with f32 sums; the weights are rounded to bf16 for the product with the values, and their
// sum is taken before. WIDTH is the width of a head.
#define THREADS 128
#define TILE (64 * WIDTH)

KERNEL void __launch_bounds__(THREADS, 2) attention_forward(
    const u16* __restrict__ q, const u16* __restrict__ k, const u16* __restrict__ v, u16* __restrict__ o,
    float* __restrict__ lse, const uint4* __restrict__ blocks, const __grid_constant__ Params p) {
    extern __shared__ __align__(128) u16 memory[];
    u16 *queries = memory, *keys = memory + TILE, *values = memory + 2 * TILE;
    u32 batch = blockIdx.y / p.heads, head = blockIdx.y % p.heads, shared = head / (p.heads / p.shared_heads);
    // the last queries see the most keys, so they come first
    Rows rows = rows_of(gridDim.x - 1 - blockIdx.x, p.tokens, blocks, p);
    u64 row = (u64)p.heads * WIDTH, key_row = (u64)p.shared_heads * WIDTH;
    const u16* from_q = q + ((u64)batch * p.tokens * p.heads + head) * WIDTH;
    const u16* from_k = k + ((u64)batch * p.positions * p.shared_heads + shared) * WIDTH;
    const u16* from_v = v + ((u64)batch * p.positions * p.shared_heads + shared) * WIDTH;
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    u32 limit = min(rows.stop, rows.past + rows.end);
    load_tile<THREADS>(queries, from_q + rows.first * row, row, rows.end - rows.first);
    load_tile<THREADS>(keys, from_k + rows.start * key_row, key_row, limit - rows.start);
    copies_commit();

    float out[WIDTH / 8][4] = {}, most[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, sum[2] = {0.f, 0.f};
    float scale = p.scale * 1.4426950408889634f;
    for (u32 at = rows.start; at < limit; at += 64) {
        copies_wait();
        __syncthreads();
        load_tile<THREADS>(values, from_v + at * key_row, key_row, limit - at);
        copies_commit();
        float s[8][4] = {};
        UNROLL for (int step = 0; step < WIDTH / 16; step++) {
            u32 a[4], b[4];
            left(a, address(queries), WIDTH, warp * 16, step);
            UNROLL for (int n = 0; n < 4; n++) {
                right_rows(b, address(keys), WIDTH, n * 16, step);
                product(s[2 * n], a, b[0], b[1]);
                product(s[2 * n + 1], a, b[2], b[3]);
            }
        }
        copies_wait();
        __syncthreads();
        if (at + 64 < limit) load_tile<THREADS>(keys, from_k + (at + 64) * key_row, key_row, limit - at - 64);
        copies_commit();

        u32 weights[8][2];
        UNROLL for (int half = 0; half < 2; half++) {
            u32 position = rows.past + rows.first + warp * 16 + half * 8 + (lane >> 2);
            float top = most[half];
            UNROLL for (int n = 0; n < 8; n++) UNROLL for (int e = 0; e < 2; e++) {
                u32 key = at + n * 8 + (lane & 3) * 2 + e;
                float& x = s[n][half * 2 + e];
                x = key <= position && key < limit ? x * scale : NEGATIVE_INFINITY;
                top = fmaxf(top, x);
            }
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
            // a row past the end may see no key of this tile
            float base = top == NEGATIVE_INFINITY ? 0.f : top, less = exp2f(most[half] - base), added = 0.f;
            UNROLL for (int n = 0; n < 8; n++) {
                float x = exp2f(s[n][half * 2] - base), y = exp2f(s[n][half * 2 + 1] - base);
                added += x + y;
                weights[n][half] = pack(x, y);
            }
            sum[half] = sum[half] * less + added;
            most[half] = top;
            UNROLL for (int n = 0; n < WIDTH / 8; n++) {
                out[n][half * 2] *= less;
                out[n][half * 2 + 1] *= less;
            }
        }
        UNROLL for (int step = 0; step < 4; step++) {
            u32 a[4] = {weights[2 * step][0], weights[2 * step][1], weights[2 * step + 1][0], weights[2 * step + 1][1]};
            UNROLL for (int n = 0; n < WIDTH / 16; n++) {
                u32 b[4];
                right_columns(b, address(values), WIDTH, step * 16, n * 2);
                product(out[2 * n], a, b[0], b[1]);
                product(out[2 * n + 1], a, b[2], b[3]);
            }
        }
    }
    UNROLL for (int half = 0; half < 2; half++) {
        float all = sum[half];
        all += __shfl_xor_sync(~0u, all, 1);
        all += __shfl_xor_sync(~0u, all, 2);
        u32 query = rows.first + warp * 16 + half * 8 + (lane >> 2);
        if (query >= rows.end) continue;
        if ((lane & 3) == 0)
            lse[((u64)batch * p.heads + head) * p.tokens + query] = (most[half] + log2f(all)) * 0.6931471805599453f;
        u16* to = o + ((u64)batch * p.tokens * p.heads + head) * WIDTH + query * row + (lane & 3) * 2;
        UNROLL for (int n = 0; n < WIDTH / 8; n++)
            *(u32*)(to + n * 8) = pack(out[n][half * 2] / all, out[n][half * 2 + 1] / all);
    }
}
