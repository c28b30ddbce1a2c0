// What a chunk of 64 tokens is before any state is known: the gated inverse X = (I + L)⁻¹ with L = β γ K Kᵀ below the
// diagonal, the gated scores P = scale γ Q Kᵀ on and below it, and the factors of the tokens.
//
// A block of 128 threads makes a chunk of one key head: K Kᵀ and Q Kᵀ once, the inverse for each value head that reads
// them. X and P leave as the images of shared memory that the other kernels load. Past the end of a sequence β, `from`
// and the rows of P are zero.
#define FACTORS 260
struct Shared {
    u16 keys[2 * TILE], queries[2 * TILE], inverse[TILE], scores[TILE];
    // widths without conflicts for reads of two numbers
    float lower[64][72], diagonal[4][16][24];
    float sums[64], beta[64], from[64], to[64], decay;
    u64 loaded;
};
struct Sizes { u32 key_heads, value_heads; float scale; };

// The first warp: running sums of the log decays, and the factors that follow from them.
FN void factors_of(Shared& sh, const float* g, const float* beta, u32 first, u32 left, u32 head, u32 heads) {
    u32 lane = threadIdx.x & 31;
    if (threadIdx.x >= 32) return;
    float before = 0.f, sum[2];
    UNROLL for (int half = 0; half < 2; half++) {
        u32 t = half * 32 + lane;
        u64 at = (u64)(first + t) * heads + head;
        float x = t < left ? g[at] : 0.f;
        sh.beta[t] = t < left ? beta[at] : 0.f;
        UNROLL for (int by = 1; by < 32; by *= 2) {
            float y = __shfl_up_sync(~0u, x, by);
            if (lane >= by) x += y;
        }
        sum[half] = x + before;
        before = __shfl_sync(~0u, sum[half], 31);
    }
    UNROLL for (int half = 0; half < 2; half++) {
        u32 t = half * 32 + lane;
        sh.sums[t] = sum[half];
        sh.from[t] = t < left ? exponential(sum[half]) : 0.f;
        sh.to[t] = exponential(before - sum[half]);
    }
    if (lane == 0) sh.decay = exponential(before);
}

// P into its image, L in f32; the image of X becomes zero.
FN void scores_and_lower(Shared& sh, const float (&kk)[32], const float (&qk)[32], u32 left, float scale) {
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    UNROLL for (int b = 0; b < 8; b++) UNROLL for (int half = 0; half < 2; half++) {
        u32 i = warp * 16 + half * 8 + (lane >> 2), j = b * 8 + (lane & 3) * 2;
        float p[2], l[2];
        UNROLL for (int e = 0; e < 2; e++) {
            // the mask comes first: above the diagonal the exponential may overflow
            bool inside = j + e <= i && i < left;
            float decay = inside ? exponential(sh.sums[i] - sh.sums[j + e]) : 0.f;
            p[e] = inside ? scale * decay * qk[b * 4 + half * 2 + e] : 0.f;
            l[e] = inside && j + e < i ? sh.beta[i] * kk[b * 4 + half * 2 + e] : 0.f;
        }
        u32 at = place(i, j >> 3) + (j & 7) * 2;
        *(u32*)((char*)sh.scores + at) = pack(p[0], p[1]);
        *(u32*)((char*)sh.inverse + at) = 0;
        *(float2*)&sh.lower[i][j] = make_float2(l[0], l[1]);
    }
}

// The inverses of the diagonal blocks of I + L: a warp a block, a lane a column.
FN void invert_diagonal(Shared& sh) {
    u32 w = threadIdx.x >> 5, column = threadIdx.x & 15;
    float x[16];
    UNROLL for (int i = 0; i < 16; i++) {
        float sum = i == column ? 1.f : 0.f;
        UNROLL for (int m = 0; m < i; m++) sum -= sh.lower[w * 16 + i][w * 16 + m] * x[m];
        x[i] = sum;
    }
    if ((threadIdx.x & 31) < 16) UNROLL for (int i = 0; i < 16; i++) sh.diagonal[w][i][column] = x[i];
}

// d += x · yᵀ of 16 × 16, where x is the result of such a product and y lies by rows in shared memory. The inner numbers
// 2t and 2t + 1 of a lane take the places t and t + 4 of the instruction, in both factors.
FN void times_transposed(float (&d)[2][4], const float (&x)[2][4], const float* y, u32 stride) {
    u32 lane = threadIdx.x & 31;
    UNROLL for (int k = 0; k < 2; k++) {
        u32 a[4] = {tf32(x[k][0]), tf32(x[k][2]), tf32(x[k][1]), tf32(x[k][3])};
        UNROLL for (int n = 0; n < 2; n++) {
            float2 b = *(const float2*)&y[(n * 8 + (lane >> 2)) * stride + k * 8 + (lane & 3) * 2];
            product_tf32(d[n], a, tf32(b.x), tf32(b.y));
        }
    }
}

// A warp makes one column of 16-blocks of X, transposed in its registers, and writes it, gated, to the image.
FN void invert(Shared& sh) {
    u32 w = uniform(threadIdx.x >> 5), lane = threadIdx.x & 31;
    float x[4][2][4];
    UNROLL for (int n = 0; n < 2; n++) UNROLL for (int e = 0; e < 4; e++)
        x[0][n][e] = sh.diagonal[w][n * 8 + (lane & 3) * 2 + (e & 1)][(lane >> 2) + (e >> 1) * 8];
    UNROLL for (int d = 0; d < 4; d++) {
        u32 i = w + d;
        if (i > 3) continue;
        if (d > 0) {
            float sum[2][4] = {};
            UNROLL for (int m = 0; m < d; m++) times_transposed(sum, x[m], &sh.lower[i * 16][(w + m) * 16], 72);
            UNROLL for (int n = 0; n < 2; n++) UNROLL for (int e = 0; e < 4; e++) {
                sum[n][e] = -sum[n][e];
                x[d][n][e] = 0.f;
            }
            times_transposed(x[d], sum, &sh.diagonal[i][0][0], 24);
        }
        u32 r[4];
        UNROLL for (int n = 0; n < 2; n++) UNROLL for (int half = 0; half < 2; half++) {
            u32 column = w * 16 + (lane >> 2) + half * 8, row = i * 16 + n * 8 + (lane & 3) * 2;
            float gated[2];
            UNROLL for (int e = 0; e < 2; e++) {
                float decay = column <= row + e ? exponential(sh.sums[row + e] - sh.sums[column]) : 0.f;
                gated[e] = decay * x[d][n][half * 2 + e];
            }
            r[n * 2 + half] = pack(gated[0], gated[1]);
        }
        u32 row = i * 16 + (lane >> 4) * 8 + (lane & 7), piece = w * 2 + (lane >> 3 & 1);
        store_fragments_t(address(sh.inverse) + place(row, piece), r[0], r[1], r[2], r[3]);
    }
}

KERNEL void __launch_bounds__(128) delta_prepare(
    const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const float* g, const float* beta,
    const uint4* chunks, u16* inverse, u16* scores, float* factors, const __grid_constant__ Sizes sizes) {
    extern __shared__ __align__(1024) char memory[];
    Shared& sh = *(Shared*)memory;
    u32 chunk = blockIdx.x / sizes.key_heads, head = blockIdx.x % sizes.key_heads;
    u32 share = sizes.value_heads / sizes.key_heads;
    u32 first = chunks[chunk].x, left = chunks[chunk].y;
    u32 loaded = address(&sh.loaded);
    if (threadIdx.x == 0) {
        barrier_init(loaded, 1);
        barrier_init_fence();
        barrier_expect(loaded, 4 * 2 * TILE);
        for (u32 half = 0; half < 2; half++) {
            load_box(address(sh.keys + half * TILE), &k, head * 128 + half * 64, first, loaded);
            load_box(address(sh.queries + half * TILE), &q, head * 128 + half * 64, first, loaded);
        }
    }
    factors_of(sh, g, beta, first, left, head * share, sizes.value_heads);
    __syncthreads();
    barrier_wait(loaded, 0);
    float kk[32], qk[32];
    products_begin();
    u32 keys = address(sh.keys), queries = address(sh.queries);
    UNROLL for (int i = 0; i < 8; i++) product_64_shared<0, 0>(kk, along_rows(keys, i), along_rows(keys, i), i > 0);
    UNROLL for (int i = 0; i < 8; i++) product_64_shared<0, 0>(qk, along_rows(queries, i), along_rows(keys, i), i > 0);
    products_commit();
    products_wait<0>();
    for (u32 r = 0; r < share; r++) {
        if (r > 0) {
            if (threadIdx.x == 0) stores_read();
            factors_of(sh, g, beta, first, left, head * share + r, sizes.value_heads);
            __syncthreads();
        }
        u64 square = (u64)chunk * sizes.value_heads + head * share + r;
        float* f = factors + square * FACTORS;
        u32 t = threadIdx.x & 63;
        bool upper = threadIdx.x >= 64;
        f[threadIdx.x] = upper ? sh.to[t] : sh.from[t];
        f[128 + threadIdx.x] = upper ? sh.sums[t] : sh.beta[t];
        if (threadIdx.x < 4) f[256 + threadIdx.x] = threadIdx.x == 0 ? sh.decay : 0.f;
        scores_and_lower(sh, kk, qk, left, sizes.scale);
        __syncthreads();
        invert_diagonal(sh);
        __syncthreads();
        invert(sh);
        fence_async();
        __syncthreads();
        if (threadIdx.x == 0) {
            store_bytes(inverse + square * TILE, address(sh.inverse), 2 * TILE);
            store_bytes(scores + square * TILE, address(sh.scores), 2 * TILE);
            stores_commit();
        }
    }
    if (threadIdx.x == 0) stores_done();
}
