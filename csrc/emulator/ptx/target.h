// Where the code runs: function qualifiers, indices, and the block's shared memory.
//
// This folder has the names of csrc/ptx. Kernels are compiled against it by any C++17 compiler, with the include
// paths csrc/emulator and csrc in this order, and linked with csrc/emulator/*.cpp.
#pragma once
#include <cstdint>

#include "emulator/block.h"

#define DEVICE inline
#define UNROLL
#define NO_UNROLL

struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace ptx {

constexpr int WARP = 32;
constexpr int WARPGROUP = 128;
constexpr int SHARED_MEMORY = emulator::SharedMemory::MAX_BYTES;

DEVICE int thread_index() { return emulator::running_block->scheduler.running(); }
DEVICE int block_index() { return emulator::running_block->index; }
DEVICE int grid_size() { return emulator::running_block->grid.blocks; }
DEVICE int lane_index() { return thread_index() % WARP; }

// On the device these are shuffles, which every lane must reach.
DEVICE int warp_index() {
    emulator::running_block->warps.pass("warp_index");
    return thread_index() / WARP;
}
DEVICE int warpgroup_index() {
    emulator::running_block->warps.pass("warpgroup_index");
    return thread_index() / WARPGROUP;
}

DEVICE int forget(int value) { return value; }

DEVICE uint32_t shared_memory() { return emulator::SharedMemory::BASE; }

}  // namespace ptx
