// Exchange between the lanes of a warp.
#pragma once
#include "ptx/target.h"

namespace ptx {

template <class T>
DEVICE T shuffle_xor(T value, int mask) {
    return emulator::running_block->warps.exchange("shuffle_xor", mask, value, (lane_index() ^ mask) % WARP);
}

template <class T>
DEVICE T shuffle(T value, int lane) {
    return emulator::running_block->warps.exchange("shuffle", 0, value, lane % WARP);
}

template <class T>
DEVICE T shuffle_up(T value, int delta) {
    const int source = lane_index() - delta;
    return emulator::running_block->warps.exchange("shuffle_up", delta, value, source < 0 ? lane_index() : source);
}

DEVICE bool any_lane(bool condition) { return emulator::running_block->warps.any(condition); }

DEVICE void warp_sync() { emulator::running_block->warps.sync(); }

DEVICE bool elect() {
    emulator::running_block->warps.pass("elect");
    return lane_index() == 0;
}

}  // namespace ptx
