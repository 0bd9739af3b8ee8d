// Exchange between the lanes of a warp.
#pragma once
#include "ptx/target.h"

namespace ptx {

template <class T>
DEVICE T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(~0u, value, mask);
}

template <class T>
DEVICE T shuffle(T value, int lane) {
    return __shfl_sync(~0u, value, lane);
}

// From the lane `delta` below; the first lanes get their own.
template <class T>
DEVICE T shuffle_up(T value, int delta) {
    return __shfl_up_sync(~0u, value, delta);
}

DEVICE bool any_lane(bool condition) { return __any_sync(~0u, condition); }

DEVICE void warp_sync() { __syncwarp(); }

// True in one lane of the warp.
DEVICE bool elect() {
    uint32_t elected;
    asm volatile(
        "{\n"
        ".reg .pred one;\n"
        "elect.sync _|one, 0xffffffff;\n"
        "selp.b32 %0, 1, 0, one;\n"
        "}\n"
        : "=r"(elected));
    return elected;
}

}  // namespace ptx
