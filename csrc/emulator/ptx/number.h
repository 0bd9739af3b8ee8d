// 16-bit types as tags, their conversions, and the special functions.
#pragma once
#include "emulator/mark.h"
#include "emulator/number.h"
#include "ptx/target.h"

namespace ptx {

struct bf16 {
    uint16_t bits;
};
struct fp16 {
    uint16_t bits;
};

template <class T>
DEVICE uint32_t pack(float low, float high);

template <>
DEVICE uint32_t pack<bf16>(float low, float high) {
    emulator::check_landed(make_float2(low, high), "pack");
    return static_cast<uint32_t>(emulator::float_to_bf16(high)) << 16 | emulator::float_to_bf16(low);
}

template <>
DEVICE uint32_t pack<fp16>(float low, float high) {
    emulator::check_landed(make_float2(low, high), "pack");
    return static_cast<uint32_t>(emulator::float_to_fp16(high)) << 16 | emulator::float_to_fp16(low);
}

DEVICE float to_float(bf16 value) { return emulator::bf16_to_float(value.bits); }
DEVICE float to_float(fp16 value) { return emulator::fp16_to_float(value.bits); }

DEVICE float exp2_approximate(float x) {
    emulator::check_landed(x, "exp2_approximate");
    return emulator::flush_subnormal(std::exp2(emulator::flush_subnormal(x)));
}

DEVICE float log2_approximate(float x) {
    emulator::check_landed(x, "log2_approximate");
    return std::log2(emulator::flush_subnormal(x));
}

DEVICE float tanh_approximate(float x) {
    emulator::check_landed(x, "tanh_approximate");
    return std::tanh(x);
}

DEVICE float min_or_nan(float a, float b) {
    if (a == b) return std::signbit(a) ? a : b;
    return a < b || a != a ? a : b;
}

DEVICE float max_or_nan(float a, float b) {
    if (a == b) return std::signbit(a) ? b : a;
    return a > b || a != a ? a : b;
}

DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) {
    return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}

}  // namespace ptx
