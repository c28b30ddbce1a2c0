// What the kernels ask of a Hopper GPU, one function each.

// A matrix in memory as the copy engine sees it: a CUtensorMap, whose box is 64 rows of 64 numbers.
struct alignas(64) TensorMap { u64 words[16]; };

// The same number in every lane, said so that the compiler keeps it once for the warp.
FN u32 uniform(u32 x) { return __shfl_sync(~0u, x, 0); }

// --- barriers in shared memory, which count arrivals and bytes

FN void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
FN void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// One arrival, and this many bytes that are still to come.
FN void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// One arrival at the barrier of a block of the cluster. Its release reaches this block alone, which is enough: what is
// given back was read, by products that were waited for. A release to the cluster would wait for all of memory.
FN void barrier_arrive_at(u32 barrier, u32 block) {
    asm volatile(
        "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier), "r"(block) : "memory");
}
FN void barrier_wait(u32 barrier, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra DONE;\nbra AGAIN;\nDONE:\n}" ::"r"(barrier), "r"(parity) : "memory");
}

// --- groups of threads

FN void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
FN u32 rank_in_cluster() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
FN void group_sync(u32 number, u32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory"); }
// What was written to shared memory is seen by the copy engine and by matrix units.
FN void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// --- the copy engine

FN void load_box(u32 to, const TensorMap* map, u32 column, u32 row, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
        "l"(map), "r"(column), "r"(row), "r"(barrier) : "memory");
}
FN void load_box_to(u32 to, const TensorMap* map, u32 column, u32 row, u32 barrier, u16 blocks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
        "[%1, {%2, %3}], [%4], %5;" ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(blocks) : "memory");
}
FN void load_bytes(u32 to, const void* from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier) : "memory");
}
FN void load_bytes_to(u32 to, const void* from, u32 bytes, u32 barrier, u16 blocks) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], "
        "%4;" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier), "h"(blocks) : "memory");
}
FN void store_box(const TensorMap* map, u32 from, u32 column, u32 row) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(column),
                 "r"(row), "r"(from) : "memory");
}
FN void store_bytes(void* to, u32 from, u32 bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes)
                 : "memory");
}
FN void stores_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until the committed stores have read their memory, or have ended.
FN void stores_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
FN void stores_done() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// --- fragments of 8 × 8

FN void load_fragments_t(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));
}
FN void store_fragments(u32 at, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(a), "r"(b), "r"(c),
                 "r"(d) : "memory");
}
FN void store_fragments_t(u32 at, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(a), "r"(b),
                 "r"(c), "r"(d) : "memory");
}

// --- products of a warpgroup: bf16 factors, f32 sums

FN void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
FN void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most N committed groups of products are under way.
template <int N> FN void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

#define EIGHT(i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SUMS_32 \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"

// d = a · b, added to d if `add`: a is 64 × 16 in registers, b is 16 × 64 in shared memory, whose rows are columns of b
// (BY_ROWS = 0) or rows of b (1).
template <int BY_ROWS> FN void product_64(float (&d)[32], const u32* a, u64 b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " SUMS_32 ", {%32,%33,%34,%35}, %36, p, 1, 1, %38;\n}"
        : EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(BY_ROWS));
}
// The same with both factors in shared memory, each by its lines (0) or across them (1).
template <int A, int B> FN void product_64_shared(float (&d)[32], u64 a, u64 b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " SUMS_32 ", %32, %33, p, 1, 1, %35, %36;\n}"
        : EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24)
        : "l"(a), "l"(b), "r"(add), "n"(A), "n"(B));
}
// d += a · b: a is 64 × 16 in registers, b 16 × 128 in shared memory by rows.
FN void product_128(float (&d)[64], const u32* a, u64 b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,"
        "%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68, "
        "1, 1, 1, 1;\n"
        : EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
// d += a · b of 16 × 8 and 8 × 8 by a warp: tf32 factors.
FN void product_tf32(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// --- numbers

FN u32 tf32(float x) {
    u32 r;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
    return r;
}
FN float first_of(u32 pair) { return __uint_as_float(pair << 16); }
FN float second_of(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
FN float exponential(float x) { return exp2f(x * 1.4426950408889634f); }

// --- tiles of 64 rows of 64 numbers of bf16 in shared memory, swizzled as the copy engine does with rows of 128 bytes

#define TILE 4096
FN u64 descriptor(u32 at, u32 leading, u32 stride) {
    return (u64)((at & 0x3ffff) >> 4) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32 | 1ull << 62;
}
// Where the 16 bytes of this number of a row are.
FN u32 place(u32 row, u32 piece) { return row * 128 + ((piece ^ (row & 7)) << 4); }
// 16 numbers of each row as the inner side of a product; two tiles side by side are 128 numbers of 64 rows.
FN u64 along_rows(u32 tile, u32 step) { return descriptor(tile + (step >> 2) * 8192 + (step & 3) * 32, 16, 1024); }
// 16 rows as the inner side of a product.
FN u64 across_rows(u32 tile, u32 step) { return descriptor(tile + step * 2048, 8192, 1024); }

// The rows of two tiles from `left` on become zero: they belong to another sequence, and 0 · NaN is NaN. A group of
// `threads` threads does it.
FN void clear_rows(u16* tiles, u32 left, u32 count, u32 thread, u32 threads) {
    for (u32 i = thread; i < (64 - left) * 8 * count; i += threads) {
        u32 tile = i / ((64 - left) * 8), row = left + i / 8 % (64 - left);
        *(uint4*)((char*)(tiles + tile * TILE) + row * 128 + (i & 7) * 16) = make_uint4(0, 0, 0, 0);
    }
}
