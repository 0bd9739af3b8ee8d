// 16-bit types as tags, their conversions, and the special functions.
#pragma once
#include <cstring>

#include "ptx/target.h"

namespace ptx {

struct bf16 {
    uint16_t bits;
};
struct fp16 {
    uint16_t bits;
};

DEVICE uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}

DEVICE float flush(float value) { return std::fabs(value) < 1.17549435e-38f ? std::copysign(0.0f, value) : value; }

template <class T>
uint16_t round_to(float value);

template <>
DEVICE uint16_t round_to<bf16>(float value) {
    if (value != value) return 0x7fff;
    const uint32_t bits = bits_of(value);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <>
DEVICE uint16_t round_to<fp16>(float value) {
    if (value != value) return 0x7fff;
    const auto number = static_cast<_Float16>(value);
    uint16_t bits;
    std::memcpy(&bits, &number, sizeof(bits));
    return bits;
}

template <class T>
DEVICE uint32_t pack(float low, float high) {
    return static_cast<uint32_t>(round_to<T>(high)) << 16 | round_to<T>(low);
}

DEVICE float to_float(bf16 value) { return emulator::bf16_to_float(value.bits); }
DEVICE float to_float(fp16 value) { return emulator::fp16_to_float(value.bits); }

DEVICE float exp2_approximate(float x) { return flush(std::exp2(flush(x))); }
DEVICE float log2_approximate(float x) { return std::log2(flush(x)); }
DEVICE float tanh_approximate(float x) { return std::tanh(x); }

DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) {
    return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}

}  // namespace ptx
