// Numbers of every dtype, as rows of float32.
#pragma once
#include "call.h"
#include "simd.h"

namespace ISA {

INLINE float from_bits(uint32_t bits) {
    float number;
    std::memcpy(&number, &bits, 4);
    return number;
}
INLINE uint32_t to_bits(float number) {
    uint32_t bits;
    std::memcpy(&bits, &number, 4);
    return bits;
}

struct Float32 {
    using Stored = float;
    static INLINE float widened(float number) { return number; }
    static INLINE float narrowed(float number) { return number; }
};

struct BFloat16 {
    using Stored = uint16_t;
    static INLINE float widened(uint16_t number) { return from_bits(uint32_t(number) << 16); }
    static INLINE uint16_t narrowed(float number) {
        const uint32_t bits = to_bits(number), odd = bits >> 16 & 1;
        return number != number ? 0x7fc0 : (bits + 0x7fff + odd) >> 16;
    }
};

struct Float16 {
    using Stored = uint16_t;
    static INLINE float widened(uint16_t number) {
        const uint32_t sign = uint32_t(number & 0x8000) << 16, size = uint32_t(number & 0x7fff) << 13;
        const float scaled = from_bits(size) * 0x1p112f;
        return from_bits(sign | (size >= 0x0f800000 ? size | 0x7f800000 : to_bits(scaled)));
    }
    static INLINE uint16_t narrowed(float number) {
        const uint32_t sign = to_bits(number) >> 16 & 0x8000, size = to_bits(number) & 0x7fffffff;
        if (size > 0x7f800000) return sign | 0x7e00;
        if (size >= 0x477ff000) return sign | 0x7c00;
        if (size < 0x38800000) {  // less than the least normal one: an addition rounds where it must
            return sign | (to_bits(from_bits(size) + 0.5f) - to_bits(0.5f));
        }
        return sign | ((size + 0xfff + (size >> 13 & 1) - 0x38000000) >> 13);
    }
};

template <class Function>
INLINE void with_number(Number number, Function function) {
    if (number == Number::float32) return function(Float32());
    if (number == Number::bfloat16) return function(BFloat16());
    return function(Float16());
}

// `count` numbers, `stride` apart.
inline void widen(float* to, const void* from, int64_t stride, int64_t count, Number number) {
    with_number(number, [&](auto kind) {
        const auto* numbers = static_cast<const typename decltype(kind)::Stored*>(from);
        if (stride == 1)
            for (int64_t i = 0; i < count; ++i) to[i] = kind.widened(numbers[i]);
        else
            for (int64_t i = 0; i < count; ++i) to[i] = kind.widened(numbers[i * stride]);
    });
}
inline void narrow(void* to, const float* from, int64_t stride, int64_t count, Number number) {
    with_number(number, [&](auto kind) {
        auto* numbers = static_cast<typename decltype(kind)::Stored*>(to);
        if (stride == 1)
            for (int64_t i = 0; i < count; ++i) numbers[i] = kind.narrowed(from[i]);
        else
            for (int64_t i = 0; i < count; ++i) numbers[i * stride] = kind.narrowed(from[i]);
    });
}

}  // namespace ISA
