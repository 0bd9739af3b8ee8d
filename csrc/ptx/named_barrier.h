// The block's sixteen numbered barriers. 0 is the whole block's; kernels name the others.
#pragma once
#include "ptx/target.h"

namespace ptx {

// Waits until `threads` threads have synchronised on or arrived at the barrier.
DEVICE void named_barrier_sync(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Counts as one of the `threads` and goes on.
DEVICE void named_barrier_arrive(int barrier, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

DEVICE void block_sync() { __syncthreads(); }

}  // namespace ptx
