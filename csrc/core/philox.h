// Counter-based random numbers, Philox4x32-10 (Salmon et al. 2011). Layout: attnkern/philox.py.
#pragma once
#include <ptx/number.h>

namespace core {

struct Words {
    uint32_t word[4];
};

// Small: as a loop, for code that draws many times over.
template <bool Small = false>
DEVICE Words philox(int64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    constexpr int AT_ONCE = Small ? 1 : 10;
    _Pragma("unroll AT_ONCE") for (int round = 0; round < 10; ++round) {
        const uint32_t high0 = ptx::multiply_high(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const uint32_t high1 = ptx::multiply_high(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// In [0, 1), from the top 24 bits.
DEVICE float uniform(uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-24f; }

constexpr int SAMPLE_STREAM = 1, SAMPLE_BLOCK = 64;

}  // namespace core
