// Exchange between the lanes of a warp.
#pragma once
#include <cstring>

#include "ptx/target.h"

namespace ptx {

template <class T>
DEVICE T exchange(const char* operation, int argument, T value, int source) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = emulator::running_block->warps.exchange(operation, argument, bits, source);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

template <class T>
DEVICE T shuffle_xor(T value, int mask) {
    return exchange("shuffle_xor", mask, value, (lane_index() ^ mask) % WARP);
}

template <class T>
DEVICE T shuffle(T value, int lane) {
    return exchange("shuffle", 0, value, lane % WARP);
}

DEVICE bool any_lane(bool condition) { return emulator::running_block->warps.any(condition); }

DEVICE void warp_sync() { emulator::running_block->warps.sync(); }

DEVICE bool elect() {
    emulator::running_block->warps.pass("elect");
    return lane_index() == 0;
}

}  // namespace ptx
