// The gradient of the state, back through the chunks of a sequence. With D the gradient of the state that leaves a chunk,
// all transposed:
//
//   G = to (D Kᵀ) + dOᵀ P    Y = G X    D = decay D + scale (from dOᵀ) Q − (from β Y) K
//
// It leaves D of every chunk, Y, and the gradient of the first state.

// dOᵀ as a left factor: as it is, and from the chunk's start.
FN void left_of_gradient(u32 (&plain)[16], u32 (&from)[16], const Stage& st, const Lane& me, float scale) {
    u32 tile = address(st.values);
    UNROLL for (int b = 0; b < 8; b += 2) {
        u32 v[4], row = b * 8 + (me.lane >> 4) * 8 + (me.lane & 7), piece = me.warp * 2 + (me.lane >> 3 & 1);
        load_fragments_t(v, tile + place(row, piece));
        UNROLL for (int part = 0; part < 4; part++) {
            float2 f = *(const float2*)&st.from[(b + (part >> 1)) * 8 + (me.lane & 3) * 2];
            plain[b * 2 + part] = v[part];
            from[b * 2 + part] = pack(scale * f.x * first_of(v[part]), scale * f.y * second_of(v[part]));
        }
    }
}

FN void times_square_t(float (&d)[32], const u32 (&a)[16], u32 tile) {
    UNROLL for (int i = 0; i < 4; i++) product_64<1>(d, a + i * 4, across_rows(tile, i), i > 0);
}

FN void consume(Shared& sh, const Sequence& w, const TensorMap* map, u16* y, u16* gradients, const float* factors,
                const float* last, float* first, const Sizes& sizes) {
    Lane me = {threadIdx.x >> 5 & 3, threadIdx.x & 31};
    u32 width = sizes.value_heads * 128;
    u64 at_state = place_of_state(w, me, sizes);
    const float* decays = factors + ((u64)w.first_chunk * sizes.value_heads + w.head) * FACTORS + 256;
    float s[64], t[32], g[32];
    u32 state[32], plain[16], from[16], left[16];
    load_state(s, last, at_state);
    float decay = w.chunks > 0 ? decays[(u64)(w.chunks - 1) * sizes.value_heads * FACTORS] : 1.f;
    left_of_state(state, s, decay);
    for (u32 i = 0; i < w.chunks; i++) {
        u32 c = w.chunks - 1 - i;
        Stage& st = sh.stage[i % STAGES];
        barrier_wait(address(&sh.full[i % STAGES]), i / STAGES & 1);
        clear_others(st, w.tokens - c * 64);
        decay = c > 0 ? decays[(u64)(c - 1) * sizes.value_heads * FACTORS] : 1.f;
        products_begin();
        times_rows<0, 8>(t, state, address(st.keys));
        products_commit();
        left_of_gradient(plain, from, st, me, sizes.scale);
        products_begin();
        times_square_t(g, plain, address(st.scores));
        products_commit();
        add_keys(s, from, address(st.queries));
        products_commit();
        keep_state(sh, w, c, gradients, state, me, sizes);
        products_wait<1>();  // D Kᵀ and dOᵀ P
        UNROLL for (int b = 0; b < 8; b++) {
            float2 f = *(const float2*)&st.to[b * 8 + (me.lane & 3) * 2];
            left[b * 2] = pack(f.x * t[b * 4] + g[b * 4], f.y * t[b * 4 + 1] + g[b * 4 + 1]);
            left[b * 2 + 1] = pack(f.x * t[b * 4 + 2] + g[b * 4 + 2], f.y * t[b * 4 + 3] + g[b * 4 + 3]);
        }
        products_begin();
        times_square_t(t, left, address(st.inverse));
        products_commit();
        products_wait<0>();  // Y
        left_of(plain, t);
        UNROLL for (int b = 0; b < 8; b++) {
            u32 at = b * 8 + (me.lane & 3) * 2;
            float2 f = *(const float2*)&st.from[at], e = *(const float2*)&st.beta[at];
            from[b * 2] = pack(-f.x * e.x * t[b * 4], -f.y * e.y * t[b * 4 + 1]);
            from[b * 2 + 1] = pack(-f.x * e.x * t[b * 4 + 2], -f.y * e.y * t[b * 4 + 3]);
        }
        products_begin();
        add_keys(s, from, address(st.keys));
        products_commit();
        store_rows(sh, w, c, i, plain, me, map, y, width);
        products_wait<0>();
        left_of_state(state, s, decay);
        release(sh, i, me);
    }
    save_state(s, first, at_state);
}

KERNEL void __launch_bounds__(160, 1) __cluster_dims__(2, 1, 1) delta_reverse(
    const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap dy,
    const __grid_constant__ TensorMap to_y, const u16* inverse, const u16* scores, const float* factors,
    const uint4* sequences, const float* last, float* first, u16* y, u16* gradients,
    const __grid_constant__ Sizes sizes) {
    extern __shared__ __align__(1024) char memory[];
    Shared& sh = *(Shared*)memory;
    barriers_begin(sh);
    Sequence w = sequence_of(blockIdx.x, sequences, sizes);
    if (uniform(threadIdx.x >> 7) == 0) {
        consume(sh, w, &to_y, y, gradients, factors, last, first, sizes);
        if (threadIdx.x == 0) stores_done();
    } else if (threadIdx.x == 128) {
        produce<1>(sh, w, &q, &k, &dy, inverse, scores, factors, sizes);
    }
    // the other block may still send to this one
    cluster_sync();
}
