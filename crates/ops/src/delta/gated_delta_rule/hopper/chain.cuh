// What the passes through the chunks of a sequence share. A warpgroup keeps a transposed matrix of 64 values × 128 keys in
// registers; it is the left factor of every product, so nothing of the chain from chunk to chunk goes through memory.
//
// One more warp fetches what the chunks need, STAGES ahead. The two halves of a head's 128 values are the two blocks of a
// cluster, and each block fetches half of what both read. KEEP: the matrix of every chunk is stored.
#define FACTORS 260
#define CLUSTER 2

struct alignas(1024) Stage {
    u16 keys[2 * TILE], queries[2 * TILE], inverse[TILE], scores[TILE];
    // rows of values, or of gradients of outputs
    u16 values[TILE];
    float from[64], to[64], beta[64], sums[64], decay[4];
};
struct Shared {
    Stage stage[STAGES];
    u16 out[2][TILE];
#if KEEP
    u16 state[2 * TILE];
#endif
    u64 full[STAGES], empty[STAGES];
};
struct Sizes { u32 key_heads, value_heads; float scale; };
struct Sequence { u32 head, column, first_token, tokens, first_chunk, chunks, number; };
struct Lane { u32 warp, lane; };

FN Sequence sequence_of(u32 block, const uint4* sequences, const Sizes& sizes) {
    u32 head = block / 2 % sizes.value_heads, number = block / 2 / sizes.value_heads;
    uint4 s = sequences[number];
    return {head, head * 128 + block % 2 * 64, uniform(s.x), uniform(s.y), uniform(s.z), uniform(s.w), number};
}

// One thread: fetches the chunks, from the first or from the last, as their places become free.
template <int BACK> FN void produce(Shared& sh, const Sequence& w, const TensorMap* q, const TensorMap* k,
                                    const TensorMap* v, const u16* inverse, const u16* scores, const float* factors,
                                    const Sizes& sizes) {
    u32 column = w.head / (sizes.value_heads / sizes.key_heads) * 128;
    for (u32 i = 0; i < w.chunks; i++) {
        u32 c = BACK ? w.chunks - 1 - i : i;
        Stage& s = sh.stage[i % STAGES];
        u32 bar = address(&sh.full[i % STAGES]);
        barrier_wait(address(&sh.empty[i % STAGES]), (i / STAGES & 1) ^ 1);
        u64 square = (u64)(w.first_chunk + c) * sizes.value_heads + w.head;
        u32 row = w.first_token + c * 64;
        barrier_expect(bar, 7 * 2 * TILE + FACTORS * 4);
        load_box(address(s.values), v, w.column, row, bar);
        load_bytes(address(s.from), factors + square * FACTORS, FACTORS * 4, bar);
        u32 rank = rank_in_cluster(), half = rank * 2 * TILE;
        load_box_to(address(s.keys) + half, k, column + rank * 64, row, bar, 3);
        load_box_to(address(s.queries) + half, q, column + rank * 64, row, bar, 3);
        if (rank == 0) load_bytes_to(address(s.inverse), inverse + square * TILE, 2 * TILE, bar, 3);
        if (rank == 1) load_bytes_to(address(s.scores), scores + square * TILE, 2 * TILE, bar, 3);
    }
}

// The state as a left factor, rounded once for all products of a chunk; then it decays over the chunk.
FN void left_of_state(u32 (&a)[32], float (&s)[64], float decay) {
    UNROLL for (int i = 0; i < 32; i++) {
        a[i] = pack(s[2 * i], s[2 * i + 1]);
        s[2 * i] *= decay;
        s[2 * i + 1] *= decay;
    }
}

FN void left_of(u32 (&a)[16], const float (&n)[32]) {
    UNROLL for (int i = 0; i < 16; i++) a[i] = pack(n[2 * i], n[2 * i + 1]);
}

// The same with each token scaled.
FN void left_scaled(u32 (&a)[16], const float (&n)[32], const float* by, const Lane& me) {
    UNROLL for (int b = 0; b < 8; b++) {
        float2 f = *(const float2*)&by[b * 8 + (me.lane & 3) * 2];
        a[b * 2] = pack(f.x * n[b * 4], f.y * n[b * 4 + 1]);
        a[b * 2 + 1] = pack(f.x * n[b * 4 + 2], f.y * n[b * 4 + 3]);
    }
}

// d = state · tileᵀ over keys FIRST · 16 to LAST · 16.
template <int FIRST, int LAST> FN void times_rows(float (&d)[32], const u32 (&state)[32], u32 tile) {
    UNROLL for (int i = FIRST; i < LAST; i++) product_64<0>(d, state + i * 4, along_rows(tile, i), i > 0);
}
FN void times_square(float (&d)[32], const u32 (&a)[16], u32 tile, int add) {
    UNROLL for (int i = 0; i < 4; i++) product_64<0>(d, a + i * 4, along_rows(tile, i), add | (i > 0));
}
FN void add_keys(float (&s)[64], const u32 (&a)[16], u32 tile) {
    UNROLL for (int i = 0; i < 4; i++) product_128(s, a + i * 4, across_rows(tile, i));
}

// Gives a stage back, to both blocks of the cluster.
FN void release(Shared& sh, u32 c, const Lane& me) {
    __syncwarp();
    if (me.lane != 0) return;
    u32 bar = address(&sh.empty[c % STAGES]);
    for (u32 block = 0; block < CLUSTER; block++) barrier_arrive_at(bar, block);
}

// The rows of a chunk, from transposed registers, to memory. `number` counts the stores.
FN void store_rows(Shared& sh, const Sequence& w, u32 c, u32 number, const u32 (&o)[16], const Lane& me,
                   const TensorMap* map, u16* out, u32 width) {
    u16* tile = sh.out[number & 1];
    UNROLL for (int b = 0; b < 8; b += 2) {
        u32 row = b * 8 + (me.lane >> 4) * 8 + (me.lane & 7), piece = me.warp * 2 + (me.lane >> 3 & 1);
        store_fragments_t(address(tile) + place(row, piece), o[b * 2], o[b * 2 + 1], o[b * 2 + 2], o[b * 2 + 3]);
    }
    u32 left = w.tokens - c * 64, row = w.first_token + c * 64;
    bool leads = threadIdx.x == 0;
    // the other tile may be written after this barrier
    if (leads) stores_read();
    fence_async();
    group_sync(1, 128);
    if (left >= 64) {
        if (leads) {
            store_box(map, address(tile), w.column, row);
            stores_commit();
        }
        return;
    }
    // the rows behind belong to another sequence
    for (u32 i = threadIdx.x; i < left * 8; i += 128) {
        u32 r = i >> 3, piece = i & 7;
        uint4 x = *(const uint4*)((const char*)tile + place(r, piece));
        *(uint4*)(out + (u64)(row + r) * width + w.column + piece * 8) = x;
    }
}

// The first or last states of a sequence: where a lane's numbers are.
FN u64 place_of_state(const Sequence& w, const Lane& me, const Sizes& sizes) {
    u64 row = (u64)w.number * sizes.value_heads * 128 + w.column + me.warp * 16 + (me.lane >> 2);
    return row * 128 + (me.lane & 3) * 2;
}
FN void load_state(float (&s)[64], const float* from, u64 at) {
    UNROLL for (int b = 0; b < 16; b++) UNROLL for (int half = 0; half < 2; half++) {
        float2 x = from ? *(const float2*)(from + at + half * 8 * 128 + b * 8) : make_float2(0.f, 0.f);
        s[b * 4 + half * 2] = x.x;
        s[b * 4 + half * 2 + 1] = x.y;
    }
}
FN void save_state(const float (&s)[64], float* to, u64 at) {
    UNROLL for (int b = 0; b < 16; b++) UNROLL for (int half = 0; half < 2; half++) {
        float2 x = make_float2(s[b * 4 + half * 2], s[b * 4 + half * 2 + 1]);
        *(float2*)(to + at + half * 8 * 128 + b * 8) = x;
    }
}

#if KEEP
// The state of a chunk, as the image of shared memory that the gradients load: two tiles of 64 values × 64 keys.
FN void keep_state(Shared& sh, const Sequence& w, u32 c, u16* states, const u32 (&a)[32], const Lane& me,
                   const Sizes& sizes) {
    u64 square = (u64)(w.first_chunk + c) * sizes.value_heads + w.head;
    u16* to = states + (square * 128 + w.column % 128) * 128;
    bool leads = threadIdx.x == 0;
    if (leads) stores_read();
    group_sync(1, 128);
    UNROLL for (int i = 0; i < 8; i++) {
        u32 row = me.warp * 16 + (me.lane & 15), piece = (i & 3) * 2 + (me.lane >> 4);
        u32 at = address(sh.state + (i >> 2) * TILE) + place(row, piece);
        store_fragments(at, a[i * 4], a[i * 4 + 1], a[i * 4 + 2], a[i * 4 + 3]);
    }
    fence_async();
    group_sync(1, 128);
    if (leads) {
        store_bytes(to, address(sh.state), 4 * TILE);
        stores_commit();
    }
}
#endif

// The rows of a chunk that belong to another sequence become zero.
FN void clear_others(Stage& st, u32 left) {
    if (left >= 64) return;
    clear_rows(st.keys, left, 4, threadIdx.x, 128);
    clear_rows(st.values, left, 1, threadIdx.x, 128);
    fence_async();
    group_sync(1, 128);
}

FN void barriers_begin(Shared& sh) {
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(address(&sh.full[i]), 1);
            barrier_init(address(&sh.empty[i]), 4 * CLUSTER);
        }
        barrier_init_fence();
    }
    cluster_sync();
}
