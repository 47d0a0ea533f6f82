// Vectors of the arithmetic type (float, or double for double data), loaded from and stored to any data type.
// Included by each instruction set's source inside its own namespace; nothing here is shared between them.
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <cstdint>
#include <cstring>

#include "call.h"

#if defined(__AVX512F__)
#define BN_BYTES 64
#elif defined(__AVX2__)
#define BN_BYTES 32
#else
#define BN_BYTES 16
#endif
#define BN_INLINE static inline __attribute__((always_inline))
// A loop over data: compiled once for each kind of data and called through loops.h, never copied into its callers.
#define BN_LOOP static __attribute__((noinline))
// Conversions and parts of vectors. Without the instructions for them they are long, so x86's oldest machines call
// them.
#if defined(__x86_64__) && !defined(__AVX2__)
#define BN_EDGE BN_LOOP
#else
#define BN_EDGE BN_INLINE
#endif

namespace bn {
namespace BN_NS {

struct BF16 { uint16_t bits; };
struct F16 { uint16_t bits; };

template <class A> struct VecOf;
template <> struct VecOf<float> { typedef float type __attribute__((vector_size(BN_BYTES), aligned(4))); };
template <> struct VecOf<double> { typedef double type __attribute__((vector_size(BN_BYTES), aligned(8))); };
typedef typename VecOf<float>::type VF;
typedef typename VecOf<double>::type VD;
typedef uint32_t VU __attribute__((vector_size(BN_BYTES)));
typedef uint16_t VH __attribute__((vector_size(BN_BYTES / 2)));
constexpr int kWF = BN_BYTES / 4;

template <class T> struct Arith { typedef float type; };
template <> struct Arith<double> { typedef double type; };

template <class A> constexpr int width() { return BN_BYTES / static_cast<int>(sizeof(A)); }
BN_INLINE VF splat(float v) { return VF{} + v; }
BN_INLINE VD splat(double v) { return VD{} + v; }

// Whole vectors ---------------------------------------------------------------------------------------------

// Not memcpy: for AVX2 GCC makes of it two halves that pass through the stack, which waits for them each time.
typedef float AnyVF __attribute__((vector_size(BN_BYTES), aligned(1), may_alias));
typedef double AnyVD __attribute__((vector_size(BN_BYTES), aligned(1), may_alias));
BN_INLINE VF load(const float* p) { return (VF) * reinterpret_cast<const AnyVF*>(p); }
BN_INLINE VD load(const double* p) { return (VD) * reinterpret_cast<const AnyVD*>(p); }
BN_INLINE void store(float* p, VF v) { *reinterpret_cast<AnyVF*>(p) = (AnyVF)v; }
BN_INLINE void store(double* p, VD v) { *reinterpret_cast<AnyVD*>(p) = (AnyVD)v; }

BN_EDGE VF from_bf16(VH h) { return (VF)(__builtin_convertvector(h, VU) << 16); }
BN_EDGE VH to_bf16(VF v) {
    VU b = (VU)v;
    VU rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
    VU nan = VU{} + 0x7fc0u;
    return __builtin_convertvector((b & 0x7fffffffu) > 0x7f800000u ? nan : rounded, VH);
}

#if defined(__AVX512F__)
BN_INLINE VF from_f16(VH h) { return (VF)_mm512_cvtph_ps((__m256i)h); }
BN_INLINE VH to_f16(VF v) { return (VH)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
#elif defined(__AVX2__)
BN_INLINE VF from_f16(VH h) { return (VF)_mm256_cvtph_ps((__m128i)h); }
BN_INLINE VH to_f16(VF v) { return (VH)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT); }
#else
// The bit arithmetic of IEEE half precision: scale the exponent, let the float unit round.
BN_EDGE VF from_f16(VH h) {
    VU w = __builtin_convertvector(h, VU) << 16;
    VU sign = w & 0x80000000u, twice = w + w;
    VF normal = (VF)((twice >> 4) + (0xE0u << 23)) * 0x1.0p-112f;
    VF subnormal = (VF)((twice >> 17) | (126u << 23)) - 0.5f;
    return (VF)(sign | (twice < (1u << 27) ? (VU)subnormal : (VU)normal));
}
BN_EDGE VH to_f16(VF v) {
    VU w = (VU)v, sign = w & 0x80000000u, twice = w + w;
    VF base = ((VF)(w & 0x7fffffffu) * 0x1.0p+112f) * 0x1.0p-110f;
    VU bias = twice & 0xFF000000u, least = VU{} + 0x71000000u;
    bias = bias < least ? least : bias;
    VU bits = (VU)((VF)((bias >> 1) + 0x07800000u) + base);
    VU rest = ((bits >> 13) & 0x7C00u) + (bits & 0x0FFFu);
    VU nan = VU{} + 0x7E00u;
    return __builtin_convertvector((sign >> 16) | (twice > 0xFF000000u ? nan : rest), VH);
}
#endif

BN_INLINE VH load_bits(const uint16_t* p) {
    VH h;
    std::memcpy(&h, p, sizeof h);
    return h;
}
BN_INLINE VF load(const BF16* p) { return from_bf16(load_bits(&p->bits)); }
BN_INLINE VF load(const F16* p) { return from_f16(load_bits(&p->bits)); }
BN_INLINE void store(BF16* p, VF v) {
    VH h = to_bf16(v);
    std::memcpy(p, &h, sizeof h);
}
BN_INLINE void store(F16* p, VF v) {
    VH h = to_f16(v);
    std::memcpy(p, &h, sizeof h);
}

// v where y is not at most the limit (NaN is not), else zero. The plain conditional becomes a mask that is made a
// vector first.
#if defined(__AVX512F__)
// v is held in a register first: made a masked load, as the compiler likes it, it would wait for y to be known.
BN_INLINE VF where_above(VF y, float limit, VF v) {
    asm("" : "+v"(v));
    return (VF)_mm512_maskz_mov_ps(_mm512_cmp_ps_mask((__m512)y, _mm512_set1_ps(limit), _CMP_NLE_UQ), (__m512)v);
}
BN_INLINE VD where_above(VD y, double limit, VD v) {
    asm("" : "+v"(v));
    return (VD)_mm512_maskz_mov_pd(_mm512_cmp_pd_mask((__m512d)y, _mm512_set1_pd(limit), _CMP_NLE_UQ), (__m512d)v);
}
// v where weight is not 0, else instead.
BN_INLINE VF unless_zero(VF weight, VF v, VF instead) {
    const __mmask16 some = _mm512_cmp_ps_mask((__m512)weight, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    return (VF)_mm512_mask_mov_ps((__m512)instead, some, (__m512)v);
}
BN_INLINE VD unless_zero(VD weight, VD v, VD instead) {
    const __mmask8 some = _mm512_cmp_pd_mask((__m512d)weight, _mm512_setzero_pd(), _CMP_NEQ_UQ);
    return (VD)_mm512_mask_mov_pd((__m512d)instead, some, (__m512d)v);
}
#else
BN_INLINE VF where_above(VF y, float limit, VF v) { return y <= limit ? VF{} : v; }
BN_INLINE VD where_above(VD y, double limit, VD v) { return y <= limit ? VD{} : v; }
BN_INLINE VF unless_zero(VF weight, VF v, VF instead) { return weight != 0 ? v : instead; }
BN_INLINE VD unless_zero(VD weight, VD v, VD instead) { return weight != 0 ? v : instead; }
#endif
template <class V> BN_INLINE V where_positive(V y, V v) { return where_above(y, 0, v); }

// The largest value that is 0 once it is stored: half of the smallest one above.
template <class T> struct Underflow { static constexpr T limit = 0; };
template <> struct Underflow<BF16> { static constexpr float limit = 0x1p-134f; };
template <> struct Underflow<F16> { static constexpr float limit = 0x1p-25f; };

// Stores that go past the cache, for outputs it would not hold; the address is a multiple of the vector's size.
#if defined(__AVX512F__)
BN_INLINE void stream(float* p, VF v) { _mm512_stream_ps(p, (__m512)v); }
BN_INLINE void stream(double* p, VD v) { _mm512_stream_pd(p, (__m512d)v); }
#elif defined(__AVX2__)
BN_INLINE void stream(float* p, VF v) { _mm256_stream_ps(p, (__m256)v); }
BN_INLINE void stream(double* p, VD v) { _mm256_stream_pd(p, (__m256d)v); }
#elif defined(__SSE2__)
BN_INLINE void stream(float* p, VF v) { _mm_stream_ps(p, (__m128)v); }
BN_INLINE void stream(double* p, VD v) { _mm_stream_pd(p, (__m128d)v); }
#else
BN_INLINE void stream(float* p, VF v) { store(p, v); }
BN_INLINE void stream(double* p, VD v) { store(p, v); }
#endif
template <class T> BN_INLINE void stream(T* p, VF v) { store(p, v); }

// How many elements before p is a multiple of the vector's size; none where it never is.
template <class T, int L> BN_INLINE int64_t until_aligned(const T* p) {
    const uintptr_t bytes = L * sizeof(T), beyond = reinterpret_cast<uintptr_t>(p) % bytes;
    return beyond && beyond % sizeof(T) == 0 ? static_cast<int64_t>((bytes - beyond) / sizeof(T)) : 0;
}

// The last n < width elements of a row; lanes beyond hold `fill` ------------------------------------------------

#if defined(__AVX512F__)
BN_INLINE __mmask16 first16(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
BN_INLINE VF load(const float* p, int n, VF fill) { return (VF)_mm512_mask_loadu_ps((__m512)fill, first16(n), p); }
BN_INLINE VD load(const double* p, int n, VD fill) {
    return (VD)_mm512_mask_loadu_pd((__m512d)fill, static_cast<__mmask8>(first16(n)), p);
}
BN_INLINE void store(float* p, VF v, int n) { _mm512_mask_storeu_ps(p, first16(n), (__m512)v); }
BN_INLINE void store(double* p, VD v, int n) {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>(first16(n)), (__m512d)v);
}
BN_INLINE VH load_bits(const uint16_t* p, int n) { return (VH)_mm256_maskz_loadu_epi16(first16(n), p); }
BN_INLINE void store_bits(uint16_t* p, VH h, int n) { _mm256_mask_storeu_epi16(p, first16(n), (__m256i)h); }
BN_INLINE VF keep(VF v, int n, VF fill) { return (VF)_mm512_mask_mov_ps((__m512)fill, first16(n), (__m512)v); }
#else
BN_INLINE VU lanes() {
    VU v;
    for (int i = 0; i < kWF; ++i) v[i] = static_cast<uint32_t>(i);
    return v;
}
BN_EDGE VF keep(VF v, int n, VF fill) { return lanes() < static_cast<uint32_t>(n) ? v : fill; }
BN_EDGE VH load_bits(const uint16_t* p, int n) {
    uint16_t b[kWF] = {};
    for (int i = 0; i < n; ++i) b[i] = p[i];
    return load_bits(b);
}
BN_EDGE void store_bits(uint16_t* p, VH h, int n) {
    uint16_t b[kWF];
    std::memcpy(b, &h, sizeof h);
    for (int i = 0; i < n; ++i) p[i] = b[i];
}
#if defined(__AVX2__)
BN_INLINE __m256i first8(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), (__m256i)lanes()); }
BN_INLINE VF load(const float* p, int n, VF fill) { return keep((VF)_mm256_maskload_ps(p, first8(n)), n, fill); }
BN_INLINE void store(float* p, VF v, int n) { _mm256_maskstore_ps(p, first8(n), (__m256)v); }
#else
BN_EDGE VF load(const float* p, int n, VF fill) {
    for (int i = 0; i < n; ++i) fill[i] = p[i];
    return fill;
}
BN_EDGE void store(float* p, VF v, int n) {
    for (int i = 0; i < n; ++i) p[i] = v[i];
}
#endif
BN_EDGE VD load(const double* p, int n, VD fill) {
    for (int i = 0; i < n; ++i) fill[i] = p[i];
    return fill;
}
BN_EDGE void store(double* p, VD v, int n) {
    for (int i = 0; i < n; ++i) p[i] = v[i];
}
#endif

BN_INLINE VF load(const BF16* p, int n, VF fill) { return keep(from_bf16(load_bits(&p->bits, n)), n, fill); }
BN_INLINE VF load(const F16* p, int n, VF fill) { return keep(from_f16(load_bits(&p->bits, n)), n, fill); }
BN_INLINE void store(BF16* p, VF v, int n) { store_bits(&p->bits, to_bf16(v), n); }
BN_INLINE void store(F16* p, VF v, int n) { store_bits(&p->bits, to_f16(v), n); }

// Whole vectors where n is their width, known when this is compiled; else the part that there is.
template <class T, class V> BN_INLINE V take(const T* p, int n, V fill) {
    return n == static_cast<int>(sizeof(V) / sizeof(fill[0])) ? load(p) : load(p, n, fill);
}
template <class T, class V> BN_INLINE void put(T* p, V v, int n, bool past = false) {
    if (n != static_cast<int>(sizeof(V) / sizeof(v[0]))) store(p, v, n);
    else if (past) stream(p, v);
    else store(p, v);
}
// body(i, width) for each whole vector of n values, and body(i, rest) for what is left.
template <class A, class Body> BN_INLINE void each_part(int64_t n, const Body& body) {
    int64_t i = 0;
    for (; i + width<A>() <= n; i += width<A>()) body(i, width<A>());
    if (i < n) body(i, static_cast<int>(n - i));
}

// Halves upon halves, in double: a chain of additions would take as long as a tile's arithmetic.
template <int L> BN_INLINE double halved(double* t) {
    for (int half = L / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) t[i] += t[i + half];
    return t[0];
}
template <int L, class V> BN_INLINE double sum_of(V v) {
    double t[L];
    for (int i = 0; i < L; ++i) t[i] = static_cast<double>(v[i]);
    return halved<L>(t);
}
BN_INLINE double sum(VF v) { return sum_of<kWF>(v); }
BN_INLINE double sum(VD v) { return sum_of<width<double>()>(v); }

BN_INLINE float scalar(const float* p) { return *p; }
BN_INLINE double scalar(const double* p) { return *p; }
template <class T> BN_INLINE float scalar(const T* p) { return load(p, 1, VF{})[0]; }

// Of values that lie side by side, in double; eight sums, since one would wait for itself at every value.
template <class T> BN_INLINE double sum(const T* p, int64_t n) {
    double t[8] = {};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; ++j) t[j] += static_cast<double>(scalar(p + i + j));
    for (int j = 0; i < n; ++i, ++j) t[j] += static_cast<double>(scalar(p + i));
    return halved<8>(t);
}

// Has N values brought into the cache; the address may lie anywhere.
template <int64_t N, class T> BN_INLINE void ask(const T* p) {
    const char* bytes = reinterpret_cast<const char*>(p);
    for (int64_t at = 0; at < N * static_cast<int64_t>(sizeof(T)); at += 64) __builtin_prefetch(bytes + at);
}

BN_INLINE bool finite(double v) { return v - v == 0; }
BN_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace BN_NS
}  // namespace bn
