// u = A · round(v β) and w = A · round(k β e^g) of a chunk of 64 tokens and a value head, by a block. A is the sum of two
// matrices of bf16, so that 16 bits of its numbers count. WIDTH is the width of keys and of values.
#define THREADS 128
struct Params { u32 tokens, chunks, key_heads, value_heads; };
struct Shared {
    u16 values[64 * WIDTH], keys[64 * WIDTH];
    float of_values[64], of_keys[64];
};

FN float first_of(u32 pair) { return __uint_as_float(pair << 16); }
FN float second_of(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
FN u32 scaled(u32 pair, float factor) { return pack(first_of(pair) * factor, second_of(pair) * factor); }

// Rows times a factor each, rounded. Rows from `count` on are zeros.
FN void load_scaled(u16* tile, const u16* from, u64 stride, u32 count, const float* factors) {
    UNROLL for (u32 step = 0; step < WIDTH / 16; step++) {
        u32 i = step * THREADS + threadIdx.x, row = i / (WIDTH / 8), piece = i % (WIDTH / 8);
        uint4 x = row < count ? *(const uint4*)(from + row * stride + piece * 8) : make_uint4(0, 0, 0, 0);
        float f = factors[row];
        *(uint4*)((char*)tile + place(WIDTH, row, piece)) =
            make_uint4(scaled(x.x, f), scaled(x.y, f), scaled(x.z, f), scaled(x.w, f));
    }
}

// The left factors of a warp: 16 rows of A on and below the diagonal, 16 columns a step. What lies above is not read.
FN void load_rows(u32 (&high)[4][4], u32 (&low)[4][4], const float* a, u64 stride, u32 count) {
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    UNROLL for (u32 step = 0; step < 4; step++) UNROLL for (u32 part = 0; part < 4; part++) {
        u32 row = warp * 16 + (part & 1) * 8 + (lane >> 2), column = step * 16 + (part >> 1) * 8 + (lane & 3) * 2;
        float2 x = row < count && column <= row ? *(const float2*)(a + row * stride + column) : make_float2(0.f, 0.f);
        if (column == row) x.y = 0.f;
        high[step][part] = pack(x.x, x.y);
        low[step][part] = pack(x.x - first_of(high[step][part]), x.y - second_of(high[step][part]));
    }
}

// 16 rows of a product.
FN void multiply(float (&sum)[WIDTH / 8][4], const u32 (&high)[4][4], const u32 (&low)[4][4], u32 tile) {
    UNROLL for (u32 n = 0; n < WIDTH / 8; n++) UNROLL for (u32 i = 0; i < 4; i++) sum[n][i] = 0.f;
    UNROLL for (u32 step = 0; step < 4; step++) {
        if (step > threadIdx.x >> 5) continue;
        UNROLL for (u32 n = 0; n < WIDTH / 16; n++) {
            u32 b[4];
            right_columns(b, tile, WIDTH, step * 16, n * 2);
            product(sum[2 * n], low[step], b[0], b[1]);
            product(sum[2 * n], high[step], b[0], b[1]);
            product(sum[2 * n + 1], low[step], b[2], b[3]);
            product(sum[2 * n + 1], high[step], b[2], b[3]);
        }
    }
}

// The rows of a warp leave by way of a tile that nobody reads any more, 16 bytes at once.
FN void store_rows(u16* to, u64 stride, u32 count, u16* tile, const float (&sum)[WIDTH / 8][4]) {
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    UNROLL for (u32 n = 0; n < WIDTH / 8; n++) UNROLL for (u32 half = 0; half < 2; half++)
        *(u32*)((char*)tile + place(WIDTH, warp * 16 + half * 8 + (lane >> 2), n) + (lane & 3) * 4) =
            pack(sum[n][2 * half], sum[n][2 * half + 1]);
    __syncwarp();
    UNROLL for (u32 step = 0; step < WIDTH / 16; step++) {
        u32 i = step * 32 + lane, row = warp * 16 + i / (WIDTH / 8), piece = i % (WIDTH / 8);
        if (row < count)
            *(uint4*)(to + row * stride + piece * 8) = *(const uint4*)((const char*)tile + place(WIDTH, row, piece));
    }
}

KERNEL void __launch_bounds__(THREADS) recompute_w_u(
    const u16* __restrict__ k, const u16* __restrict__ v, const float* __restrict__ beta, const float* __restrict__ g,
    const float* __restrict__ a, u16* __restrict__ w, u16* __restrict__ u, const __grid_constant__ Params p) {
    extern __shared__ __align__(128) char memory[];
    Shared& sh = *(Shared*)memory;
    u32 head = blockIdx.x % p.value_heads, chunk = blockIdx.x / p.value_heads;
    u32 first = chunk % p.chunks * 64, count = min(p.tokens - first, 64u);
    u64 token = (u64)(chunk / p.chunks) * p.tokens + first;
    u64 of_head = token * p.value_heads + head;
    if (threadIdx.x < 64) {
        bool is_there = threadIdx.x < count;
        u64 at = is_there ? of_head + (u64)threadIdx.x * p.value_heads : of_head;
        float factor = is_there ? beta[at] : 0.f;
        sh.of_values[threadIdx.x] = factor;
        sh.of_keys[threadIdx.x] = is_there ? factor * expf(g[at]) : 0.f;
    }
    __syncthreads();
    u64 row = (u64)p.value_heads * WIDTH, key_row = (u64)p.key_heads * WIDTH;
    u32 key_head = head / (p.value_heads / p.key_heads);
    load_scaled(sh.values, v + of_head * WIDTH, row, count, sh.of_values);
    load_scaled(sh.keys, k + (token * p.key_heads + key_head) * WIDTH, key_row, count, sh.of_keys);
    u32 high[4][4], low[4][4];
    load_rows(high, low, a + of_head * 64, (u64)p.value_heads * 64, count);
    __syncthreads();
    float sum[WIDTH / 8][4];
    multiply(sum, high, low, address(sh.values));
    __syncthreads();
    store_rows(u + of_head * WIDTH, row, count, sh.values, sum);
    multiply(sum, high, low, address(sh.keys));
    __syncthreads();
    store_rows(w + of_head * WIDTH, row, count, sh.keys, sum);
}
