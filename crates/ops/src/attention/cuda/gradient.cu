// The gradients of attention, without sums that two blocks share. A block of eight warps has 64 rows of X and Y and meets
// rows of U and W, 64 after the other:
//
//   P = exp(scale X Uᵀ − lse)    dS = P (Y Wᵀ − δ)    dX = scale dS U    dY = P W
//
// OF_KEYS: the rows are keys and values, they meet queries and gradients of all heads that share them, and dX, dY are dk and
// dv. Otherwise the rows are queries and gradients, they meet keys and values, and dX is dq.
//
// A warp has 16 rows: half of the columns of P and dS, which all share, and half of the columns of dX and dY.
#define THREADS 256
#define TILE (64 * WIDTH)
#define SQUARE (64 * 64)

KERNEL void __launch_bounds__(THREADS, 1) attention_gradient(
    const u16* __restrict__ q, const u16* __restrict__ k, const u16* __restrict__ v, const u16* __restrict__ dy,
    const float* __restrict__ lse, const float* __restrict__ with_o, u16* __restrict__ dx, u16* __restrict__ dvalues,
    const uint4* __restrict__ blocks, const __grid_constant__ Params p) {
    extern __shared__ __align__(128) u16 memory[];
    u16 *x_tile = memory, *y_tile = memory + TILE, *u_tile = memory + 2 * TILE, *w_tile = memory + 3 * TILE;
    u16 *ds_tile = memory + 4 * TILE, *p_tile = ds_tile + SQUARE;
    float *lse_tile = (float*)(p_tile + SQUARE), *delta_tile = lse_tile + 64;
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31, part = warp >> 2, row0 = (warp & 3) * 16;
    u32 share = p.heads / p.shared_heads, own_heads = OF_KEYS ? p.shared_heads : p.heads;
    u32 batch = blockIdx.y / own_heads, own = blockIdx.y % own_heads, shared = OF_KEYS ? own : own / share;
    // what meets the most comes first: early keys, late queries
    u32 block = OF_KEYS ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
    Rows rows = rows_of(block, OF_KEYS ? p.positions : p.tokens, blocks, p);
    u64 query_row = (u64)p.heads * WIDTH, key_row = (u64)p.shared_heads * WIDTH;
    u64 row = OF_KEYS ? key_row : query_row, met_row = OF_KEYS ? query_row : key_row;
    u64 keys_at = ((u64)batch * p.positions * p.shared_heads + shared) * WIDTH;
    u64 own_at = OF_KEYS ? keys_at : ((u64)batch * p.tokens * p.heads + own) * WIDTH;
    u32 count = rows.end - rows.first;
    load_tile<THREADS>(x_tile, (OF_KEYS ? k : q) + own_at + rows.first * row, row, count);
    load_tile<THREADS>(y_tile, (OF_KEYS ? v : dy) + own_at + rows.first * row, row, count);
    copies_commit();
    // queries from the first that sees a key of the block; keys up to the last that a query of the block sees
    u32 begin = !OF_KEYS ? rows.start : p.is_packed ? rows.first : rows.first > rows.past ? rows.first - rows.past : 0;
    u32 limit = !OF_KEYS ? min(rows.stop, rows.past + rows.end) : p.is_packed ? rows.stop : p.tokens;
    float scale = p.scale * 1.4426950408889634f;

    float to_x[WIDTH / 16][4] = {}, to_y[OF_KEYS ? WIDTH / 16 : 1][4] = {};
    for (u32 h = 0; h < (OF_KEYS ? share : 1); h++) {
        u32 head = OF_KEYS ? own * share + h : own;
        u64 met_at = OF_KEYS ? ((u64)batch * p.tokens * p.heads + head) * WIDTH : keys_at;
        const u16 *from_u = (OF_KEYS ? q : k) + met_at, *from_w = (OF_KEYS ? dy : v) + met_at;
        u64 sums_at = ((u64)batch * p.heads + head) * p.tokens;
        for (u32 at = begin; at < limit; at += 64) {
            load_tile<THREADS>(u_tile, from_u + at * met_row, met_row, limit - at);
            load_tile<THREADS>(w_tile, from_w + at * met_row, met_row, limit - at);
            copies_commit();
            if (threadIdx.x < 64) {
                u32 query = (OF_KEYS ? at : rows.first) + threadIdx.x;
                bool is_there = query < (OF_KEYS ? limit : rows.end);
                lse_tile[threadIdx.x] = is_there ? lse[sums_at + query] * 1.4426950408889634f : 0.f;
                delta_tile[threadIdx.x] = is_there ? with_o[sums_at + query] : 0.f;
            }
            copies_wait();
            __syncthreads();
            float s[4][4] = {}, dp[4][4] = {};
            // not all at once: fragments that are fetched early take registers
            _Pragma("unroll 2") for (int step = 0; step < WIDTH / 16; step++) {
                u32 a[4], c[4], b[4];
                left(a, address(x_tile), WIDTH, row0, step);
                left(c, address(y_tile), WIDTH, row0, step);
                UNROLL for (int n = 0; n < 2; n++) {
                    right_rows(b, address(u_tile), WIDTH, part * 32 + n * 16, step);
                    product(s[2 * n], a, b[0], b[1]);
                    product(s[2 * n + 1], a, b[2], b[3]);
                    right_rows(b, address(w_tile), WIDTH, part * 32 + n * 16, step);
                    product(dp[2 * n], c, b[0], b[1]);
                    product(dp[2 * n + 1], c, b[2], b[3]);
                }
            }
            UNROLL for (int half = 0; half < 2; half++) {
                u32 i = row0 + half * 8 + (lane >> 2);
                UNROLL for (int n = 0; n < 4; n++) {
                    u32 j = part * 32 + n * 8 + (lane & 3) * 2;
                    float weight[2], ds[2];
                    UNROLL for (int e = 0; e < 2; e++) {
                        u32 key = OF_KEYS ? rows.first + i : at + j + e, query = OF_KEYS ? at + j + e : rows.first + i;
                        bool sees = key <= rows.past + query && (OF_KEYS ? query < limit && key < rows.end : key < limit);
                        u32 sums = OF_KEYS ? j + e : i;
                        weight[e] = sees ? exp2f(s[n][half * 2 + e] * scale - lse_tile[sums]) : 0.f;
                        ds[e] = weight[e] * (dp[n][half * 2 + e] - delta_tile[sums]);
                    }
                    u32 to = place(64, i, j >> 3) + (j & 7) * 2;
                    *(u32*)((char*)ds_tile + to) = pack(ds[0], ds[1]);
                    if (OF_KEYS) *(u32*)((char*)p_tile + to) = pack(weight[0], weight[1]);
                }
            }
            __syncthreads();
            UNROLL for (int step = 0; step < 4; step++) {
                u32 a[4], c[4], b[4];
                left(a, address(ds_tile), 64, row0, step);
                if (OF_KEYS) left(c, address(p_tile), 64, row0, step);
                UNROLL for (int n = 0; n < WIDTH / 32; n++) {
                    u32 piece = part * (WIDTH / 16) + n * 2;
                    right_columns(b, address(u_tile), WIDTH, step * 16, piece);
                    product(to_x[2 * n], a, b[0], b[1]);
                    product(to_x[2 * n + 1], a, b[2], b[3]);
                    if (OF_KEYS) {
                        right_columns(b, address(w_tile), WIDTH, step * 16, piece);
                        product(to_y[2 * n], c, b[0], b[1]);
                        product(to_y[2 * n + 1], c, b[2], b[3]);
                    }
                }
            }
            __syncthreads();
        }
    }
    UNROLL for (int half = 0; half < 2; half++) {
        u32 i = rows.first + row0 + half * 8 + (lane >> 2);
        if (i >= rows.end) continue;
        u64 to = own_at + i * row + part * (WIDTH / 2) + (lane & 3) * 2;
        UNROLL for (int n = 0; n < WIDTH / 16; n++) {
            *(u32*)(dx + to + n * 8) = pack(p.scale * to_x[n][half * 2], p.scale * to_x[n][half * 2 + 1]);
            if (OF_KEYS) *(u32*)(dvalues + to + n * 8) = pack(to_y[n][half * 2], to_y[n][half * 2 + 1]);
        }
    }
}
