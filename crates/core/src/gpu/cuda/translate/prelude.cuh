// What WGSL has and C++ has not: vectors, bounded arrays, and functions whose results WGSL defines.
// No header is included, so that NVRTC needs none on the user's machine.
typedef unsigned int u32;
typedef unsigned long long u64;
#define FN __device__ __forceinline__
#define EACH(N) _Pragma("unroll") for (u32 i = 0; i < N; i++)

// CHECKED kernels never reach past their memory: an index past the end becomes the last one.
#if CHECKED
#define LIMIT(i, n) ((i) < (u32)(n) ? (u32)(i) : (u32)(n) - 1u)
#else
#define LIMIT(i, n) (i)
#endif

template <class T, int N> struct vec;
template <class T> struct alignas(2 * sizeof(T)) vec<T, 2> {
    T x, y;
    FN T& operator[](u32 i) { return (&x)[LIMIT(i, 2)]; }
    FN const T& operator[](u32 i) const { return (&x)[LIMIT(i, 2)]; }
};
template <class T> struct vec<T, 3> {
    T x, y, z;
    FN T& operator[](u32 i) { return (&x)[LIMIT(i, 3)]; }
    FN const T& operator[](u32 i) const { return (&x)[LIMIT(i, 3)]; }
};
template <class T> struct alignas(4 * sizeof(T)) vec<T, 4> {
    T x, y, z, w;
    FN T& operator[](u32 i) { return (&x)[LIMIT(i, 4)]; }
    FN const T& operator[](u32 i) const { return (&x)[LIMIT(i, 4)]; }
};
template <class T, u32 N> struct arr {
    T v[N];
    FN T& operator[](u32 i) { return v[LIMIT(i, N)]; }
    FN const T& operator[](u32 i) const { return v[LIMIT(i, N)]; }
};

template <int N, class T> FN vec<T, N> splat(T x) { vec<T, N> r; EACH(N) (&r.x)[i] = x; return r; }
template <class T, class V> FN void put(T*& to, V v) {
    if constexpr (sizeof(V) == sizeof(T)) { *to++ = v; }
    else { EACH(sizeof(V) / sizeof(T)) *to++ = (&v.x)[i]; }
}
template <class T, int N, class... A> FN vec<T, N> make(A... parts) {
    vec<T, N> r;
    T* to = &r.x;
    (put(to, parts), ...);
    return r;
}

// signed sums and products wrap
FN int add(int a, int b) { return (int)((u32)a + (u32)b); }
FN int sub(int a, int b) { return (int)((u32)a - (u32)b); }
FN int mul(int a, int b) { return (int)((u32)a * (u32)b); }
// division by zero gives the dividend, its remainder 0
FN u32 divided(u32 a, u32 b) { return b == 0u ? a : a / b; }
FN int divided(int a, int b) { return b == 0 || (b == -1 && a == (int)0x80000000u) ? a : a / b; }
FN u32 rest(u32 a, u32 b) { return b == 0u ? 0u : a % b; }
FN int rest(int a, int b) { return b == 0 || b == -1 ? 0 : a % b; }
template <class T, int N> FN vec<T, N> rest(vec<T, N> a, vec<T, N> b) {
    vec<T, N> r; EACH(N) (&r.x)[i] = rest((&a.x)[i], (&b.x)[i]); return r;
}

// operators: by scalar, then by element
#define INFIX(name, expression) \
    template <class T> FN auto name(T a, T b) { return expression; } \
    template <class T, int N> FN auto name(vec<T, N> a, vec<T, N> b) { \
        vec<decltype(name(a.x, b.x)), N> r; EACH(N) (&r.x)[i] = name((&a.x)[i], (&b.x)[i]); return r; } \
    template <class T, int N> FN auto name(vec<T, N> a, T b) { return name(a, splat<N>(b)); } \
    template <class T, int N> FN auto name(T a, vec<T, N> b) { return name(splat<N>(a), b); }
INFIX(add, a + b)
INFIX(sub, a - b)
INFIX(mul, a * b)
INFIX(divided, a / b)
INFIX(eq, a == b)
INFIX(ne, a != b)
INFIX(lt, a < b)
INFIX(le, a <= b)
INFIX(gt, a > b)
INFIX(ge, a >= b)
INFIX(bit_and, (T)(a & b))
INFIX(bit_or, (T)(a | b))
INFIX(bit_xor, (T)(a ^ b))
// a shift takes its distance modulo 32
FN u32 shl(u32 a, u32 b) { return a << (b & 31u); }
FN u32 shr(u32 a, u32 b) { return a >> (b & 31u); }
FN int shl(int a, u32 b) { return (int)((u32)a << (b & 31u)); }
FN int shr(int a, u32 b) { return a >> (b & 31u); }
template <class T, int N> FN vec<T, N> shl(vec<T, N> a, vec<u32, N> b) {
    vec<T, N> r; EACH(N) (&r.x)[i] = shl((&a.x)[i], (&b.x)[i]); return r;
}
template <class T, int N> FN vec<T, N> shr(vec<T, N> a, vec<u32, N> b) {
    vec<T, N> r; EACH(N) (&r.x)[i] = shr((&a.x)[i], (&b.x)[i]); return r;
}

template <class T> FN T select(T no, T yes, bool choice) { return choice ? yes : no; }
template <class T, int N> FN vec<T, N> select(vec<T, N> no, vec<T, N> yes, vec<bool, N> choice) {
    vec<T, N> r; EACH(N) (&r.x)[i] = (&choice.x)[i] ? (&yes.x)[i] : (&no.x)[i]; return r;
}
template <int N> FN bool all_of(vec<bool, N> x) { bool r = true; EACH(N) r = r && (&x.x)[i]; return r; }
template <int N> FN bool any_of(vec<bool, N> x) { bool r = false; EACH(N) r = r || (&x.x)[i]; return r; }

// the same bits as another type
FN u32 to_bits(float x) { return __float_as_uint(x); }
FN u32 to_bits(u32 x) { return x; }
FN u32 to_bits(int x) { return (u32)x; }
template <class R> FN R of_bits(u32 x) { return (R)x; }
template <> FN float of_bits<float>(u32 x) { return __uint_as_float(x); }
template <class R, class T> FN R bits(T x) { return of_bits<R>(to_bits(x)); }
template <class R, class T, int N> FN vec<R, N> bits(vec<T, N> x) {
    vec<R, N> r; EACH(N) (&r.x)[i] = of_bits<R>(to_bits((&x.x)[i])); return r;
}

// the value as another type; floats saturate, and NaN becomes 0
template <class R> struct Into { template <class T> static FN R from(T x) { return (R)x; } };
template <> struct Into<u32> {
    static FN u32 from(float x) { return __float2uint_rz(x); }
    template <class T> static FN u32 from(T x) { return (u32)x; }
};
template <> struct Into<int> {
    static FN int from(float x) { return __float2int_rz(x); }
    template <class T> static FN int from(T x) { return (int)x; }
};
template <class R, class T> FN R convert(T x) { return Into<R>::from(x); }
template <class R, class T, int N> FN vec<R, N> convert(vec<T, N> x) {
    vec<R, N> r; EACH(N) (&r.x)[i] = Into<R>::from((&x.x)[i]); return r;
}

// functions of one and of two numbers
#define OF_ONE(name, T, expression) \
    FN T name(T x) { return expression; } \
    template <int N> FN vec<T, N> name(vec<T, N> a) { \
        vec<T, N> r; EACH(N) (&r.x)[i] = name((&a.x)[i]); return r; }
OF_ONE(math_abs, float, fabsf(x))
OF_ONE(math_abs, int, x < 0 ? -x : x)
OF_ONE(math_abs, u32, x)
OF_ONE(math_ceil, float, ceilf(x))
OF_ONE(math_cos, float, cosf(x))
OF_ONE(math_exp, float, expf(x))
OF_ONE(math_exp2, float, exp2f(x))
OF_ONE(math_floor, float, floorf(x))
OF_ONE(math_fract, float, x - floorf(x))
OF_ONE(math_inversesqrt, float, 1.0f / sqrtf(x))
OF_ONE(math_log, float, logf(x))
OF_ONE(math_log2, float, log2f(x))
OF_ONE(math_round, float, rintf(x))
OF_ONE(math_saturate, float, __saturatef(x))
OF_ONE(math_sign, float, x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : 0.0f)
OF_ONE(math_sign, int, x > 0 ? 1 : x < 0 ? -1 : 0)
OF_ONE(math_sin, float, sinf(x))
OF_ONE(math_sqrt, float, sqrtf(x))
OF_ONE(math_tanh, float, tanhf(x))
OF_ONE(math_trunc, float, truncf(x))
OF_ONE(math_countonebits, u32, (u32)__popc(x))
OF_ONE(math_countleadingzeros, u32, (u32)__clz((int)x))
OF_ONE(math_counttrailingzeros, u32, x == 0u ? 32u : (u32)__ffs((int)x) - 1u)
OF_ONE(negated, float, -x)
OF_ONE(negated, int, (int)(0u - (u32)x))
OF_ONE(inverted, u32, ~x)
OF_ONE(inverted, int, ~x)
OF_ONE(denied, bool, !x)
#define OF_TWO(name, T, expression) \
    FN T name(T x, T y) { return expression; } \
    template <int N> FN vec<T, N> name(vec<T, N> a, vec<T, N> b) { \
        vec<T, N> r; EACH(N) (&r.x)[i] = name((&a.x)[i], (&b.x)[i]); return r; }
OF_TWO(math_min, float, fminf(x, y))
OF_TWO(math_max, float, fmaxf(x, y))
OF_TWO(math_min, u32, x < y ? x : y)
OF_TWO(math_max, u32, x > y ? x : y)
OF_TWO(math_min, int, x < y ? x : y)
OF_TWO(math_max, int, x > y ? x : y)
OF_TWO(math_pow, float, powf(x, y))
OF_TWO(math_step, float, x <= y ? 1.0f : 0.0f)
template <class T> FN T math_clamp(T x, T low, T high) { return math_min(math_max(x, low), high); }
FN float math_fma(float a, float b, float c) { return fmaf(a, b, c); }
template <int N> FN vec<float, N> math_fma(vec<float, N> a, vec<float, N> b, vec<float, N> c) {
    vec<float, N> r; EACH(N) (&r.x)[i] = fmaf((&a.x)[i], (&b.x)[i], (&c.x)[i]); return r;
}
template <class T, int N> FN T math_dot(vec<T, N> a, vec<T, N> b) {
    T sum = mul(a.x, b.x);
    _Pragma("unroll") for (u32 i = 1; i < N; i++) sum = add(sum, mul((&a.x)[i], (&b.x)[i]));
    return sum;
}
FN vec<float, 2> math_unpack2x16float(u32 x) {
    vec<float, 2> r;
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high;}"
        : "=f"(r.x), "=f"(r.y) : "r"(x));
    return r;
}
FN vec<u32, 4> math_unpack4xu8(u32 x) { return {x & 255u, x >> 8 & 255u, x >> 16 & 255u, x >> 24}; }
FN vec<int, 4> math_unpack4xi8(u32 x) {
    return {(int)(x << 24) >> 24, (int)(x << 16) >> 24, (int)(x << 8) >> 24, (int)x >> 24};
}
FN int math_dot4i8packed(u32 a, u32 b) { return __dp4a((int)a, (int)b, 0); }
FN u32 math_dot4u8packed(u32 a, u32 b) { return __dp4a(a, b, 0u); }

// atomic memory, and reductions over the 32 threads of a warp
template <class T> FN T atomic_read(T& x) { return *(volatile T*)&x; }
template <class T> FN void atomic_write(T& x, T value) { *(volatile T*)&x = value; }
// the sum over the threads of a warp that share all but the low bits of their number; all threads call it
template <class T> FN T sum_of_neighbors(T x, u32 count) {
    for (u32 w = count / 2u; w; w /= 2u) x += __shfl_xor_sync(~0u, x, w);
    return x;
}
template <class T> FN T warp_add(T x) {
    for (int w = 16; w; w /= 2) x += __shfl_xor_sync(~0u, x, w);
    return x;
}
template <class T> FN T warp_max(T x) {
    for (int w = 16; w; w /= 2) x = math_max(x, __shfl_xor_sync(~0u, x, w));
    return x;
}
template <class T> FN T warp_min(T x) {
    for (int w = 16; w; w /= 2) x = math_min(x, __shfl_xor_sync(~0u, x, w));
    return x;
}

// zeros in memory that a workgroup shares
template <class T> FN void zero_shared(T& shared) {
    u32* words = (u32*)&shared;
    for (u32 i = threadIdx.x; i < sizeof(T) / 4; i += blockDim.x) words[i] = 0u;
}
