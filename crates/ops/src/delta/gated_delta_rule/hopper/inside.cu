// The gradients inside a chunk, for all chunks at once: from the state S that enters it, the gradient D of the state that
// leaves it, and Y. With γ the decay between two tokens and ⊙ place by place:
//
//   U = K Sᵀ    Z = V − from U    N = X (β Z)    H = Y Nᵀ    M = −β γ H below the diagonal    dP = scale γ (dO Nᵀ)
//   dQ = scale from (dO S) + dP K          dK = to (N D) − from β (Y S) + dPᵀ Q + (M + Mᵀ) K
//   dV = β Y                               dβ = Y·Z − rows of γ H ⊙ K Kᵀ below the diagonal
//
// The gradient of the inverse is −Y Nᵀ, so no product of three squares is needed. The gradient of a log decay sums the
// gradients of the exponents that it is in, and of no others: those between the tokens before it and the tokens from it on
// (M ⊙ K Kᵀ and dP ⊙ Q Kᵀ), from the start to the tokens from it on, from the tokens before it to the end, and over the
// whole chunk. No difference of running sums is taken, so a strong decay keeps its digits beside weak ones.
//
// A block makes a chunk of one key head; each of its two warpgroups makes half of the columns of every product.
#define FACTORS 260
struct Shared {
    u16 keys[2 * TILE], queries[2 * TILE], values[2 * TILE], dy[2 * TILE], y[2 * TILE];
    // by halves of the values, then of the keys
    u16 state[4 * TILE], gradient[4 * TILE], inverse[TILE], n[2 * TILE], dp[TILE], m[TILE];
    float from[64], to[64], beta[64], sums[64], decay[4];
    // gradients of exponents: between two tokens (of writes, of reads), from the start, to the end, over the chunk
    float between[2][64][65], from_start[2][64], to_end[2][64], whole[8];
    float dbeta[2][64];
    u64 keys_loaded, loaded;
};
struct Sizes { u32 key_heads, value_heads; float scale; };
struct Lane { u32 half, warp, lane; };

FN u32 pair_at(u32 row, u32 b, u32 lane) { return place(row, b) + (lane & 3) * 4; }
FN u32 pair(const u16* tile, u32 row, u32 b, u32 lane) {
    return *(const u32*)((const char*)tile + pair_at(row, b, lane));
}
FN u32& pair(u16* tile, u32 row, u32 b, u32 lane) { return *(u32*)((char*)tile + pair_at(row, b, lane)); }
// The sum over the four lanes that share a row.
FN float over_row(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

// d = a · bᵀ of 64 rows of 128 numbers.
FN void by_rows(float (&d)[32], const u16* a, const u16* b) {
    UNROLL for (int i = 0; i < 8; i++)
        product_64_shared<0, 0>(d, along_rows(address(a), i), along_rows(address(b), i), i > 0);
}
// d = a · state, half of its keys.
FN void by_state(float (&d)[32], const u16* a, const u16* state, u32 half) {
    UNROLL for (int i = 0; i < 8; i++) {
        u32 tile = address(state + ((i >> 2) * 2 + half) * TILE);
        product_64_shared<0, 1>(d, along_rows(address(a), i), across_rows(tile, i & 3), i > 0);
    }
}
// d += a · b, or aᵀ · b, with a square.
template <int A> FN void by_square(float (&d)[32], const u16* a, const u16* b, int add) {
    UNROLL for (int i = 0; i < 4; i++) {
        u64 left = A ? across_rows(address(a), i) : along_rows(address(a), i);
        product_64_shared<A, 1>(d, left, across_rows(address(b), i), add | (i > 0));
    }
}
FN void finish() {
    products_commit();
    products_wait<0>();
}

FN void load(Shared& sh, u64 square, u32 head, u32 row, const TensorMap* v, const TensorMap* dy, const TensorMap* y,
             const u16* inverse, const u16* states, const u16* gradients, const float* factors) {
    u32 bar = address(&sh.loaded);
    barrier_expect(bar, (6 + 8 + 1) * 2 * TILE + FACTORS * 4);
    for (u32 half = 0; half < 2; half++) {
        u32 column = head * 128 + half * 64;
        load_box(address(sh.values + half * TILE), v, column, row, bar);
        load_box(address(sh.dy + half * TILE), dy, column, row, bar);
        load_box(address(sh.y + half * TILE), y, column, row, bar);
    }
    load_bytes(address(sh.state), states + square * 4 * TILE, 8 * TILE, bar);
    load_bytes(address(sh.gradient), gradients + square * 4 * TILE, 8 * TILE, bar);
    load_bytes(address(sh.inverse), inverse + square * TILE, 2 * TILE, bar);
    load_bytes(address(sh.from), factors + square * FACTORS, FACTORS * 4, bar);
}

// N, and the sums over values: Y·Z for dβ, and the exponents from the start in U.
FN void writes(Shared& sh, const Lane& me) {
    float u[32];
    u16* tile = sh.n + me.half * TILE;
    products_begin();
    by_rows(u, sh.keys, sh.state + me.half * 2 * TILE);
    finish();
    UNROLL for (int h = 0; h < 2; h++) {
        u32 row = me.warp * 16 + (me.lane >> 2) + h * 8;
        float from = sh.from[row], beta = sh.beta[row], yz = 0.f, yu = 0.f;
        UNROLL for (int b = 0; b < 8; b++) {
            u32 v = pair(sh.values + me.half * TILE, row, b, me.lane), y = pair(sh.y + me.half * TILE, row, b, me.lane);
            float u0 = u[b * 4 + h * 2], u1 = u[b * 4 + h * 2 + 1];
            float z0 = first_of(v) - from * u0, z1 = second_of(v) - from * u1;
            yz += first_of(y) * z0 + second_of(y) * z1;
            yu += first_of(y) * u0 + second_of(y) * u1;
            pair(tile, row, b, me.lane) = pack(beta * z0, beta * z1);
        }
        yz = over_row(yz);
        yu = over_row(yu);
        if ((me.lane & 3) == 0) {
            sh.dbeta[me.half][row] = yz;
            sh.from_start[me.half][row] = -from * beta * yu;
        }
    }
    fence_async();
    group_sync(1 + me.half, 128);
    products_begin();
    by_square<0>(u, sh.inverse, tile, 0);
    finish();
    group_sync(1 + me.half, 128);
    UNROLL for (int b = 0; b < 8; b++) UNROLL for (int h = 0; h < 2; h++) {
        u32 row = me.warp * 16 + (me.lane >> 2) + h * 8;
        pair(tile, row, b, me.lane) = pack(u[b * 4 + h * 2], u[b * 4 + h * 2 + 1]);
    }
    fence_async();
    __syncthreads();
}

// One warpgroup: M, and what β gets from it. The other: dP. Both: the exponents between two tokens, as sums over the
// tokens before each.
FN void squares(Shared& sh, const Lane& me, float scale, u32 left) {
    float h[32], scores[32];
    products_begin();
    // the factors are chosen, not the products: in a branch the compiler would run all products one after the other
    by_rows(h, me.half ? sh.dy : sh.y, sh.n);
    by_rows(scores, me.half ? sh.queries : sh.keys, sh.keys);
    finish();
    UNROLL for (int r = 0; r < 2; r++) {
        u32 row = me.warp * 16 + (me.lane >> 2) + r * 8;
        float of_beta = 0.f, factor = me.half ? scale : -sh.beta[row];
        UNROLL for (int b = 0; b < 8; b++) {
            float out[2];
            UNROLL for (int c = 0; c < 2; c++) {
                u32 column = b * 8 + (me.lane & 3) * 2 + c;
                bool inside = row < left && (me.half ? column <= row : column < row);
                float x = inside ? exponential(sh.sums[row] - sh.sums[column]) * h[b * 4 + r * 2 + c] : 0.f;
                float with = x * scores[b * 4 + r * 2 + c];
                out[c] = factor * x;
                of_beta += with;
                // a token's own exponent is 0
                sh.between[me.half][row][column] = column < row ? factor * with : 0.f;
            }
            pair(me.half ? sh.dp : sh.m, row, b, me.lane) = pack(out[0], out[1]);
        }
        of_beta = over_row(of_beta);
        if (me.half == 0 && (me.lane & 3) == 0) sh.dbeta[0][row] -= of_beta;
    }
    fence_async();
    __syncthreads();
    UNROLL for (int i = 0; i < 8; i++) {
        u32 row = (me.half * 4 + me.warp) * 8 + i;
        float before = 0.f;
        UNROLL for (int part = 0; part < 2; part++) {
            u32 column = part * 32 + me.lane;
            float x = sh.between[0][row][column] + sh.between[1][row][column], sum = x;
            UNROLL for (int by = 1; by < 32; by *= 2) {
                float y = __shfl_up_sync(~0u, sum, by);
                if (me.lane >= by) sum += y;
            }
            // the tokens before this one
            sh.between[0][row][column] = before + sum - x;
            before += __shfl_sync(~0u, sum, 31);
        }
    }
    __syncthreads();
}

// The products of the rows of d with those of a tile, half of the columns.
FN void rows_with(const float (&d)[32], const u16* tile, float (&sums)[64], const Lane& me, int add) {
    UNROLL for (int h = 0; h < 2; h++) {
        u32 row = me.warp * 16 + (me.lane >> 2) + h * 8;
        float sum = 0.f;
        UNROLL for (int b = 0; b < 8; b++) {
            u32 x = pair(tile, row, b, me.lane);
            sum += first_of(x) * d[b * 4 + h * 2] + second_of(x) * d[b * 4 + h * 2 + 1];
        }
        sum = over_row(sum);
        if ((me.lane & 3) == 0) sums[row] = add ? sums[row] + sum : sum;
    }
}
FN void scale_rows(float (&d)[32], const float* by, const float* also, float number, const Lane& me) {
    UNROLL for (int h = 0; h < 2; h++) {
        u32 row = me.warp * 16 + (me.lane >> 2) + h * 8;
        float f = number * by[row] * (also ? also[row] : 1.f);
        UNROLL for (int b = 0; b < 8; b++) {
            d[b * 4 + h * 2] *= f;
            d[b * 4 + h * 2 + 1] *= f;
        }
    }
}

FN void to_queries(Shared& sh, float (&total)[32], const Lane& me, float scale) {
    float t[32];
    products_begin();
    by_state(t, sh.dy, sh.state, me.half);
    finish();
    scale_rows(t, sh.from, nullptr, scale, me);
    rows_with(t, sh.queries + me.half * TILE, sh.from_start[me.half], me, 1);
    products_begin();
    by_square<0>(t, sh.dp, sh.keys + me.half * TILE, 1);
    finish();
    UNROLL for (int i = 0; i < 32; i++) total[i] += t[i];
}

FN void to_keys(Shared& sh, float (&total)[32], const Lane& me) {
    float t[32], u[32];
    products_begin();
    by_state(t, sh.n, sh.gradient, me.half);
    by_state(u, sh.y, sh.state, me.half);
    finish();
    scale_rows(t, sh.to, nullptr, 1.f, me);
    rows_with(t, sh.keys + me.half * TILE, sh.to_end[me.half], me, 0);
    // the decay of the states themselves: the products of S and D, place by place
    float whole = 0.f;
    const u32* s = (const u32*)(sh.state + me.half * 2 * TILE);
    const u32* d = (const u32*)(sh.gradient + me.half * 2 * TILE);
    UNROLL for (int i = 0; i < 32; i++) {
        u32 at = i * 128 + (threadIdx.x & 127);
        whole += first_of(s[at]) * first_of(d[at]) + second_of(s[at]) * second_of(d[at]);
    }
    for (u32 w = 1; w < 32; w *= 2) whole += __shfl_xor_sync(~0u, whole, w);
    if (me.lane == 0) sh.whole[me.half * 4 + me.warp] = sh.decay[0] * whole;
    scale_rows(u, sh.from, sh.beta, -1.f, me);
    UNROLL for (int i = 0; i < 32; i++) t[i] += u[i];
    products_begin();
    by_square<1>(t, sh.dp, sh.queries + me.half * TILE, 1);
    by_square<0>(t, sh.m, sh.keys + me.half * TILE, 1);
    by_square<1>(t, sh.m, sh.keys + me.half * TILE, 1);
    finish();
    UNROLL for (int i = 0; i < 32; i++) total[i] += t[i];
}

FN void store_values(Shared& sh, const Lane& me, u16* dv, u64 at, u32 left, u32 width) {
    for (u32 i = threadIdx.x & 127; i < left * 8; i += 128) {
        u32 row = i >> 3, piece = i & 7;
        uint4 y = *(const uint4*)((const char*)(sh.y + me.half * TILE) + place(row, piece));
        float b = sh.beta[row];
        uint4 x = make_uint4(pack(b * first_of(y.x), b * second_of(y.x)), pack(b * first_of(y.y), b * second_of(y.y)),
                             pack(b * first_of(y.z), b * second_of(y.z)), pack(b * first_of(y.w), b * second_of(y.w)));
        *(uint4*)(dv + at + (u64)row * width + me.half * 64 + piece * 8) = x;
    }
}
FN void store_rows(u16* out, const float (&d)[32], const Lane& me, u32 left, u64 at, u32 width) {
    UNROLL for (int h = 0; h < 2; h++) {
        u32 row = me.warp * 16 + (me.lane >> 2) + h * 8;
        if (row >= left) continue;
        u16* to = out + at + (u64)row * width + me.half * 64 + (me.lane & 3) * 2;
        UNROLL for (int b = 0; b < 8; b++) *(u32*)(to + b * 8) = pack(d[b * 4 + h * 2], d[b * 4 + h * 2 + 1]);
    }
}
FN void store_gates(Shared& sh, float* dg, float* dbeta, u64 at, u32 left, u32 heads) {
    u32 t = threadIdx.x;
    if (t >= left) return;
    float sum = 0.f;
    for (u32 i = t; i < left; i++) sum += sh.between[0][i][t] + (sh.from_start[0][i] + sh.from_start[1][i]);
    for (u32 j = 0; j < t; j++) sum += sh.to_end[0][j] + sh.to_end[1][j];
    for (u32 w = 0; w < 8; w++) sum += sh.whole[w];
    dg[at + (u64)t * heads] = sum;
    dbeta[at + (u64)t * heads] = sh.dbeta[0][t] + sh.dbeta[1][t];
}

KERNEL void __launch_bounds__(256, 1) delta_inside(
    const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
    const __grid_constant__ TensorMap dy, const __grid_constant__ TensorMap y, const u16* inverse, const float* factors,
    const u16* states, const u16* gradients, const uint4* chunks, u16* dq, u16* dk, u16* dv, float* dg, float* dbeta,
    const __grid_constant__ Sizes sizes) {
    extern __shared__ __align__(1024) char memory[];
    Shared& sh = *(Shared*)memory;
    Lane me = {uniform(threadIdx.x >> 7), threadIdx.x >> 5 & 3, threadIdx.x & 31};
    u32 chunk = blockIdx.x / sizes.key_heads, head = blockIdx.x % sizes.key_heads;
    u32 share = sizes.value_heads / sizes.key_heads;
    u32 row = uniform(chunks[chunk].x), left = uniform(chunks[chunk].y);
    u64 square = (u64)chunk * sizes.value_heads + head * share;
    if (threadIdx.x == 0) {
        u32 bar = address(&sh.keys_loaded);
        barrier_init(bar, 1);
        barrier_init(address(&sh.loaded), 1);
        barrier_init_fence();
        barrier_expect(bar, 4 * 2 * TILE);
        for (u32 half = 0; half < 2; half++) {
            load_box(address(sh.keys + half * TILE), &k, head * 128 + half * 64, row, bar);
            load_box(address(sh.queries + half * TILE), &q, head * 128 + half * 64, row, bar);
        }
        load(sh, square, head * share, row, &v, &dy, &y, inverse, states, gradients, factors);
    }
    __syncthreads();
    barrier_wait(address(&sh.keys_loaded), 0);
    float of_queries[32], of_keys[32];
    UNROLL for (int i = 0; i < 32; i++) of_queries[i] = of_keys[i] = 0.f;
    for (u32 r = 0; r < share; r++) {
        u32 value_head = head * share + r;
        barrier_wait(address(&sh.loaded), r & 1);
        if (left < 64) {
            clear_rows(sh.keys, left, r == 0 ? 10 : 0, threadIdx.x, 256);
            clear_rows(sh.values, left, r == 0 ? 0 : 6, threadIdx.x, 256);
            fence_async();
            __syncthreads();
        }
        writes(sh, me);
        squares(sh, me, sizes.scale, left);
        to_queries(sh, of_queries, me, sizes.scale);
        to_keys(sh, of_keys, me);
        store_values(sh, me, dv, ((u64)row * sizes.value_heads + value_head) * 128, left, sizes.value_heads * 128);
        __syncthreads();
        store_gates(sh, dg, dbeta, (u64)row * sizes.value_heads + value_head, left, sizes.value_heads);
        __syncthreads();
        if (threadIdx.x == 0 && r + 1 < share)
            load(sh, square + r + 1, value_head + 1, row, &v, &dy, &y, inverse, states, gradients, factors);
    }
    u64 at = ((u64)row * sizes.key_heads + head) * 128;
    store_rows(dq, of_queries, me, left, at, sizes.key_heads * 128);
    store_rows(dk, of_keys, me, left, at, sizes.key_heads * 128);
}
