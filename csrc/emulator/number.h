// Conversions between float32 and the 16-bit types, given as bits.
#pragma once
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulator {

constexpr uint16_t NAN_16 = 0x7fff;  // what the device's conversions give for every NaN

inline float bf16_to_float(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof(value));
    return value;
}

// By all 65536 bit patterns: conversions without hardware help are slow.
const std::array<float, 65536>& fp16_table();

inline float fp16_to_float(uint16_t bits) { return fp16_table()[bits]; }

// To nearest, ties to even.
inline uint16_t float_to_bf16(float value) {
    if (value != value) return NAN_16;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline uint16_t float_to_fp16(float value) {
    if (value != value) return NAN_16;
    const auto number = static_cast<_Float16>(value);
    uint16_t bits;
    std::memcpy(&bits, &number, sizeof(bits));
    return bits;
}

inline float flush_subnormal(float value) { return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value; }

}  // namespace emulator
