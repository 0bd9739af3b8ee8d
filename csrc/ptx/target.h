// Where the code runs: function qualifiers, indices, and the block's shared memory.
#pragma once
#include <cstdint>

#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")  // where one thread has few registers

namespace ptx {

constexpr int WARP = 32;
constexpr int WARPGROUP = 128;
constexpr int SHARED_MEMORY = 227 << 10;  // bytes that one block can have

DEVICE int thread_index() { return threadIdx.x; }
DEVICE int block_index() { return blockIdx.x; }
DEVICE int grid_size() { return gridDim.x; }
DEVICE int lane_index() { return threadIdx.x % WARP; }

// The same in every lane, and known to be so by the compiler.
DEVICE int warp_index() { return __shfl_sync(~0u, threadIdx.x / WARP, 0); }
DEVICE int warpgroup_index() { return __shfl_sync(~0u, threadIdx.x / WARPGROUP, 0); }

// The same number, of which the compiler no longer knows where it came from: what is computed from it is computed anew
// instead of being kept in registers.
DEVICE int forget(int value) {
    asm volatile("" : "+r"(value));
    return value;
}

// Address of the block's dynamic shared memory, aligned to 1024 bytes as the 128-byte swizzle wants.
// Shared addresses are 32-bit integers everywhere.
DEVICE uint32_t shared_memory() {
    extern __shared__ __align__(1024) char dynamic_shared_memory[];
    return static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_shared_memory));
}

}  // namespace ptx
