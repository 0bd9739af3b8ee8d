// What a machine can do at best, with numbers that stay in registers: multiply-accumulates, or exponentials.
#pragma once
#include <atomic>

#include "../pairs.h"

namespace ISA {

using Doubles = double __attribute__((vector_size(LANES * 4)));

constexpr int CHAINS = 3 * REGISTERS / 4;  // that need not wait for each other

// Calls step(chain) for every chain in every round; returns how many numbers were made.
template <class Vector, class Step>
INLINE int64_t spin_vectors(int64_t rounds, Vector start, Step step) {
    Vector chains[CHAINS];
    for (Vector& chain : chains) chain = start;
    for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 32
        for (int chain = 0; chain < CHAINS; ++chain) chains[chain] = step(chains[chain]);
    for (const Vector& chain : chains) {
        volatile auto kept = chain[0];
        (void)kept;
    }
    return rounds * CHAINS * static_cast<int64_t>(sizeof(Vector) / sizeof(start[0]));
}

inline int64_t spin_pairs(int64_t rounds) {
#if defined(__AMX_BF16__)
    const MatrixUnit unit(true);
    alignas(ALIGNMENT) uint16_t ones[SQUARE * 2 * SQUARE];
    for (uint16_t& one : ones) one = 0x3f80;
    __asm__ volatile("" ::"r"(ones) : "memory");
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, ones, 4 * SQUARE);
    _tile_loadd(5, ones, 4 * SQUARE);
    _tile_loadd(6, ones, 4 * SQUARE);
    _tile_loadd(7, ones, 4 * SQUARE);
    for (int64_t i = 0; i < rounds; ++i) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    return rounds * 4 * SQUARE * SQUARE * 2 * SQUARE;
#else
    volatile int32_t bits = 0x3f803f80;
    const Floats ones = as_floats(splat(int32_t{bits}));
    return 2 * spin_vectors(rounds, Floats{}, [&](Floats sum) { return BFloat16Pair::add(sum, ones, ones); });
#endif
}

inline int64_t spin_once(Unit unit, int64_t rounds) {
    volatile float factor = 0.5f;  // that the compiler knows nothing of
    const float f = factor;
    if (unit == Unit::exp) return spin_vectors(rounds, splat(f), [](Floats x) { return exp(-x); });
    if (unit == Unit::bfloat16 && FAST_PAIRS) return spin_pairs(rounds);
    if (unit == Unit::float64) return spin_vectors(rounds, Doubles{} + f, [&](Doubles x) { return x * f + f; });
    return spin_vectors(rounds, splat(f), [&](Floats x) { return x * f + f; });  // others are widened
}

// On so many threads at once; returns what all have done.
inline int64_t spin(Unit unit, int64_t rounds, int threads) {
    std::atomic<int64_t> done{0};
    parallel(threads, threads, [&](int64_t) { done += spin_once(unit, rounds); });
    return done;
}

}  // namespace ISA
