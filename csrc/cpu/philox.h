// Counter-based random numbers, Philox4x32-10 (Salmon et al. 2011), one counter to a lane. Layout: attnkern/philox.py.
#pragma once
#include "simd.h"

namespace ISA {

// LANES numbers of 32 bits, each in 64: what products of them fit into. The even lanes, then the odd ones.
struct Wide {
    using Half = uint64_t __attribute__((vector_size(LANES * 4)));
    Half even, odd;

    static INLINE Half product(Half a, Half b) {  // of numbers below 2^32
#if defined(__AVX512F__)
        return Half(_mm512_mul_epu32(__m512i(a), __m512i(b)));
#elif defined(__AVX2__)
        return Half(_mm256_mul_epu32(__m256i(a), __m256i(b)));
#else
        return a * b;
#endif
    }
    explicit Wide(Words words) {
        const Half both = load_as<Half>(reinterpret_cast<const uint32_t*>(&words));
        even = both & 0xffffffffu, odd = both >> 32;
    }
    Wide(Half even, Half odd) : even(even), odd(odd) {}
    INLINE Words words() const {
        const Half both = even | odd << 32;
        return load_as<Words>(reinterpret_cast<const uint64_t*>(&both));
    }
    INLINE Wide times(uint32_t factor) const { return {product(even, Half{} + factor), product(odd, Half{} + factor)}; }
    INLINE Wide high() const { return {even >> 32, odd >> 32}; }
    INLINE Wide low() const { return {even & 0xffffffffu, odd & 0xffffffffu}; }
    INLINE Wide operator^(Wide other) const { return {even ^ other.even, odd ^ other.odd}; }
    INLINE Wide operator^(uint32_t word) const { return {even ^ word, odd ^ word}; }
};

struct FourWords {
    Words word[4];
};

INLINE FourWords philox(int64_t seed, Words c0, Words c1, uint32_t stream, uint32_t block) {
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
    Wide w0(c0), w1(c1), w2(Words{} + stream), w3(Words{} + block);
    for (int round = 0; round < 10; ++round) {
        const Wide p0 = w0.times(0xD2511F53u), p1 = w2.times(0xCD9E8D57u);
        w0 = p1.high() ^ w1 ^ k0;
        w2 = p0.high() ^ w3 ^ k1;
        w1 = p1.low();
        w3 = p0.low();
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{w0.words(), w1.words(), w2.words(), w3.words()}};
}

constexpr uint32_t DROPOUT_STREAM = 0, SAMPLE_STREAM = 1;
constexpr int SAMPLE_BLOCK = 64;

// In [0, 1), from the top 24 bits.
INLINE Floats uniform(Words words) {
    return __builtin_convertvector(load_as<Ints>(reinterpret_cast<const uint32_t*>(&words)) >> 8 & 0xffffff, Floats) *
           0x1p-24f;
}

}  // namespace ISA
