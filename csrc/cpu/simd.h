// Vectors of float32 lanes, the same code for every instruction set: the compiler's own vectors, and instructions of one
// set only where it does not find them. Each set's kernels are compiled in a namespace of their own, ISA.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace ISA {

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4, REGISTERS = 32;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif

using Floats = float __attribute__((vector_size(LANES * 4)));
using Ints = int32_t __attribute__((vector_size(LANES * 4)));  // of a comparison: -1 where it holds, else 0
using Words = uint32_t __attribute__((vector_size(LANES * 4)));

constexpr float LARGEST = 3.40282347e38f, LOG2E = 1.44269504f;

template <class Vector, class Number>
INLINE Vector load_as(const Number* from) {
    Vector found;
    std::memcpy(&found, from, sizeof found);
    return found;
}
INLINE Floats load(const float* from) { return load_as<Floats>(from); }
INLINE Ints load(const int32_t* from) { return load_as<Ints>(from); }
template <class Vector, class Number>
INLINE void store(Number* to, Vector numbers) {
    std::memcpy(to, &numbers, sizeof numbers);
}

// Less 0, which is nothing; plus 0 would be an addition, as it makes +0 of -0.
INLINE Floats splat(float number) { return number - Floats{}; }
INLINE Ints splat(int32_t number) { return number - Ints{}; }

INLINE Floats as_floats(Ints ints) { return load_as<Floats>(reinterpret_cast<const int32_t*>(&ints)); }
INLINE Ints bits_of(Floats floats) { return load_as<Ints>(reinterpret_cast<const float*>(&floats)); }

// The second where one is NaN.
INLINE Floats max(Floats a, Floats b) {
#if defined(__AVX512F__)
    return Floats(_mm512_max_ps(__m512(a), __m512(b)));
#elif defined(__AVX2__)
    return Floats(_mm256_max_ps(__m256(a), __m256(b)));
#else
    return a > b ? a : b;
#endif
}
INLINE Floats min(Floats a, Floats b) {
#if defined(__AVX512F__)
    return Floats(_mm512_min_ps(__m512(a), __m512(b)));
#elif defined(__AVX2__)
    return Floats(_mm256_min_ps(__m256(a), __m256(b)));
#else
    return a < b ? a : b;
#endif
}

// Whether a comparison holds in any lane.
INLINE bool any(Ints lanes) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask(__m512i(lanes), __m512i(lanes)) != 0;
#elif defined(__AVX2__)
    return !_mm256_testz_si256(__m256i(lanes), __m256i(lanes));
#else
    int32_t all = 0;
    for (int i = 0; i < LANES; ++i) all |= lanes[i];
    return all != 0;
#endif
}

template <int Width>
INLINE Floats swapped(Floats a) {  // neighbouring runs of so many lanes
    Floats found;
    for (int i = 0; i < LANES; ++i) found[i] = a[i ^ Width];
    return found;
}
template <int Width = LANES / 2>
INLINE float sum_of(Floats a) {
    if constexpr (Width == 0)
        return a[0];
    else
        return sum_of<Width / 2>(a + swapped<Width>(a));
}
template <int Width = LANES / 2>
INLINE float highest_of(Floats a) {
    if constexpr (Width == 0)
        return a[0];
    else
        return highest_of<Width / 2>(max(swapped<Width>(a), a));
}

// Of the coefficients, the highest power's first.
template <int Count>
INLINE Floats polynomial(Floats x, const float (&coefficients)[Count]) {
    Floats found = splat(coefficients[0]);
    for (int i = 1; i < Count; ++i) found = found * x + coefficients[i];
    return found;
}

// To within 1e-7 of itself; 0 where that is less than a normal number, as others take a hundred times as long;
// infinity beyond the range, NaN for NaN.
INLINE Floats exp(Floats x) {
    constexpr float LEAST = -87.33654f, MAGIC = 0x1.8p23f;  // what is added to MAGIC loses its fraction: it is rounded
    const Floats within = min(splat(89.0f), max(splat(LEAST), x));
    const Floats power = (within * LOG2E + MAGIC) - MAGIC, f = within * LOG2E - power;
    Floats found =
        polynomial(f, {0.00015353362f, 0.0013398875f, 0.009618437f, 0.055503324f, 0.24022648f, 0.69314718f, 1.0f});
#if defined(__AVX512F__)
    found = Floats(_mm512_scalef_ps(__m512(found), __m512(power)));
#else
    const Ints whole = __builtin_convertvector(power, Ints), half = whole >> 1;  // 2^power may lie beyond the range
    found = found * as_floats((half + 127) << 23) * as_floats((whole - half + 127) << 23);
#endif
    return x < LEAST ? Floats{} : found;
}

// To within 3e-7 of itself.
INLINE Floats tanh(Floats x) {
    const Floats square = x * x;
    const Floats small =
        polynomial(square, {0.0018956609f, -0.007883276f, 0.021571044f, -0.05392095f, 0.13332984f, -0.33333325f});
    const Floats size = max(x, -x), large = 1.0f - 2.0f / (exp(size + size) + 1.0f);
    return size < 0.6f ? small * square * x + x : x < 0.0f ? -large : large;
}

}  // namespace ISA
