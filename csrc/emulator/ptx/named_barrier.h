// The block's sixteen numbered barriers.
#pragma once
#include "ptx/target.h"

namespace ptx {

DEVICE void named_barrier_sync(int barrier, int threads) {
    emulator::running_block->named_barriers.sync(barrier, threads);
}

DEVICE void named_barrier_arrive(int barrier, int threads) {
    emulator::running_block->named_barriers.arrive(barrier, threads);
}

DEVICE void block_sync() { named_barrier_sync(0, emulator::running_block->threads); }

}  // namespace ptx
