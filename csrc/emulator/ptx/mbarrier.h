// Memory barriers in shared memory.
#pragma once
#include "ptx/target.h"

namespace ptx {

constexpr int BARRIER_BYTES = 8;

DEVICE void barrier_init(uint32_t barrier, int arrivals) { emulator::running_block->barriers.init(barrier, arrivals); }

DEVICE void fence_barrier_init() { emulator::running_block->order.fence_barriers(thread_index()); }

DEVICE void barrier_arrive(uint32_t barrier) { emulator::running_block->barriers.arrive(barrier, 0); }

DEVICE void barrier_arrive_expect(uint32_t barrier, int bytes) {
    emulator::running_block->barriers.arrive(barrier, bytes);
}

DEVICE void barrier_wait(uint32_t barrier, int parity) { emulator::running_block->barriers.wait(barrier, parity); }

}  // namespace ptx
