// What every kernel in CUDA C++ begins with. Nothing is included: the compiler needs no header on the user's machine.
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
#define FN __device__ __forceinline__
#define KERNEL extern "C" __global__
#define UNROLL _Pragma("unroll")

FN u32 address(const void* shared) { return (u32)__cvta_generic_to_shared(shared); }
// Two numbers as bf16, the first in the lower half.
FN u32 pack(float first, float second) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(second), "f"(first));
    return r;
}
