// The gated delta rule through the chunks of a sequence: the outputs and the last state, from what `prepare` made.
// All transposed, with S the state; C is 64 tokens:
//
//   U = S Kᵀ    W = β (V − from U)    N = W Xᵀ    O = scale from (S Qᵀ) + N Pᵀ    S = decay S + (to N) K

// W = β (V − from U) as a left factor.
FN void left_of_writes(u32 (&a)[16], const float (&u)[32], const Stage& st, const Lane& me) {
    u32 tile = address(st.values);
    UNROLL for (int b = 0; b < 8; b += 2) {
        u32 v[4], row = b * 8 + (me.lane >> 4) * 8 + (me.lane & 7), piece = me.warp * 2 + (me.lane >> 3 & 1);
        load_fragments_t(v, tile + place(row, piece));
        UNROLL for (int half = 0; half < 2; half++) {
            u32 t = (b + half) * 8 + (me.lane & 3) * 2;
            float2 from = *(const float2*)&st.from[t], beta = *(const float2*)&st.beta[t];
            const float* x = u + (b + half) * 4;
            u32 upper = v[half * 2], lower = v[half * 2 + 1];
            a[(b + half) * 2] =
                pack(beta.x * (first_of(upper) - from.x * x[0]), beta.y * (second_of(upper) - from.y * x[1]));
            a[(b + half) * 2 + 1] =
                pack(beta.x * (first_of(lower) - from.x * x[2]), beta.y * (second_of(lower) - from.y * x[3]));
        }
    }
}

FN void consume(Shared& sh, const Sequence& w, const TensorMap* map, u16* out, u16* states, const float* factors,
                const float* initial, float* last, const Sizes& sizes) {
    Lane me = {threadIdx.x >> 5 & 3, threadIdx.x & 31};
    u32 width = sizes.value_heads * 128;
    u64 at_state = place_of_state(w, me, sizes);
    float s[64], u[32], o[32];
    u32 state[32], writes[16], scaled[16], outputs[16] = {};
    load_state(s, initial, at_state);
    // the decay over each chunk is asked for a chunk ahead
    const float* decays = factors + ((u64)w.first_chunk * sizes.value_heads + w.head) * FACTORS + 256;
    float decay = w.chunks > 0 ? *decays : 1.f;
    left_of_state(state, s, decay);
    for (u32 c = 0; c < w.chunks; c++) {
        Stage& st = sh.stage[c % STAGES];
        barrier_wait(address(&sh.full[c % STAGES]), c / STAGES & 1);
        clear_others(st, w.tokens - c * 64);
        decay = c + 1 < w.chunks ? decays[(u64)(c + 1) * sizes.value_heads * FACTORS] : 1.f;
        products_begin();
        times_rows<0, 8>(u, state, address(st.keys));
        products_commit();
        // the outputs of the chunk before leave while U is computed
        if (c > 0) {
            release(sh, c - 1, me);
            store_rows(sh, w, c - 1, c - 1, outputs, me, map, out, width);
        }
#if KEEP
        keep_state(sh, w, c, states, state, me, sizes);
#endif
        products_begin();
        times_rows<0, 4>(o, state, address(st.queries));
        products_commit();
        products_wait<1>();  // U
        left_of_writes(writes, u, st, me);
        products_begin();
        times_square(u, writes, address(st.inverse), 0);
        products_commit();
        times_rows<4, 8>(o, state, address(st.queries));
        products_commit();
        products_wait<1>();  // N
        left_scaled(scaled, u, st.to, me);
        left_of(writes, u);
        products_begin();
        add_keys(s, scaled, address(st.keys));
        products_commit();
        products_wait<1>();  // S Qᵀ
        UNROLL for (int b = 0; b < 8; b++) {
            float2 from = *(const float2*)&st.from[b * 8 + (me.lane & 3) * 2];
            from.x *= sizes.scale;
            from.y *= sizes.scale;
            o[b * 4] *= from.x;
            o[b * 4 + 1] *= from.y;
            o[b * 4 + 2] *= from.x;
            o[b * 4 + 3] *= from.y;
        }
        products_begin();
        times_square(o, writes, address(st.scores), 1);
        products_commit();
        products_wait<1>();  // S
        left_of_state(state, s, decay);
        // a product under way at the loop's end would make the compiler run all of them one after the other
        products_wait<0>();
        left_of(outputs, o);
    }
    if (w.chunks > 0) store_rows(sh, w, w.chunks - 1, w.chunks - 1, outputs, me, map, out, width);
    save_state(s, last, at_state);
}

KERNEL void __launch_bounds__(160, 1) __cluster_dims__(2, 1, 1) delta_pass(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, const __grid_constant__ TensorMap v,
           const __grid_constant__ TensorMap o, const u16* inverse, const u16* scores, const float* factors,
           const uint4* sequences, const float* initial, float* last, u16* out, u16* states, const __grid_constant__ Sizes sizes) {
    extern __shared__ __align__(1024) char memory[];
    Shared& sh = *(Shared*)memory;
    barriers_begin(sh);
    Sequence w = sequence_of(blockIdx.x, sequences, sizes);
    if (uniform(threadIdx.x >> 7) == 0) {
        consume(sh, w, &o, out, states, factors, initial, last, sizes);
        if (threadIdx.x == 0) stores_done();
    } else if (threadIdx.x == 128) {
        produce<0>(sh, w, &q, &k, &v, inverse, scores, factors, sizes);
    }
    // the other block may still send to this one
    cluster_sync();
}
