// The matrix unit: D (64 x N, float32 in registers) = A (64 x 16) B (16 x N) + D, issued by a warpgroup.
#pragma once
#include <type_traits>

#include "ptx/number.h"
#include "ptx/target.h"

namespace ptx {

enum Major { K_MAJOR = 0, MN_MAJOR = 1 };

// The descriptor's fields are decoded again from these bits.
DEVICE uint64_t operand(uint32_t address, int stride_bytes, int leading_bytes = 16) {
    constexpr uint64_t SWIZZLE_128_BYTES = 1ull << 62;
    return SWIZZLE_128_BYTES | static_cast<uint64_t>(stride_bytes >> 4) << 32 |
           static_cast<uint64_t>(leading_bytes >> 4) << 16 | ((address & 0x3ffff) >> 4);
}

DEVICE uint64_t advance(uint64_t operand, int bytes) { return operand + (bytes >> 4); }

DEVICE void products_fence() { emulator::running_block->products.fence(); }
DEVICE void products_commit() { emulator::running_block->products.commit(); }

template <int Pending>
DEVICE void products_wait() {
    emulator::running_block->products.wait(Pending);
}

template <int Count>
DEVICE void pin(float (&)[Count]) {}
template <int Count>
DEVICE void renew(float (&)[Count]) {}

// Any width here; the device's header has those that kernels use.
template <class T, int N>
struct Product {
    static_assert(N % 16 == 0 && N <= 256);
    static constexpr auto TYPE = std::is_same_v<T, bf16> ? emulator::Type::BF16 : emulator::Type::FP16;

    template <Major MajorA, Major MajorB>
    static DEVICE void shared(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {
        emulator::running_block->products.issue({TYPE, N, false, MajorA == MN_MAJOR, MajorB == MN_MAJOR}, d, a, nullptr,
                                                b, accumulate != 0);
    }

    template <Major MajorB>
    static DEVICE void registers(float (&d)[N / 2], const uint32_t* a, uint64_t b, int accumulate) {
        emulator::running_block->products.issue({TYPE, N, true, false, MajorB == MN_MAJOR}, d, 0, a, b,
                                                accumulate != 0);
    }
};

}  // namespace ptx
