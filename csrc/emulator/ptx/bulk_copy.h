// The copy engine: tiles of tensors and runs of bytes, in and out of shared memory, one thread issuing.
#pragma once
#include "ptx/target.h"
#include "ptx/tensor_map.h"

namespace ptx {

DEVICE void prefetch(const TensorMap&) {}

DEVICE void load_tile(uint32_t destination, const TensorMap& map, uint32_t barrier, int column, int row, int head,
                      int batch) {
    emulator::running_block->copies.load_tile(destination, map, barrier, {column, row, head, batch});
}

DEVICE void load_bytes(uint32_t destination, const void* source, int bytes, uint32_t barrier) {
    emulator::running_block->copies.load_bytes(destination, source, bytes, barrier);
}

DEVICE void store_tile(const TensorMap& map, uint32_t source, int column, int row, int head, int batch) {
    emulator::running_block->copies.store_tile(map, source, {column, row, head, batch});
}

DEVICE void add_floats(float* destination, uint32_t source, int bytes) {
    emulator::running_block->copies.add_floats(destination, source, bytes);
}

DEVICE void commit_stores() { emulator::running_block->copies.commit(); }

template <int Pending>
DEVICE void wait_stores_read() {
    emulator::running_block->copies.wait_read(Pending);
}

template <int Pending>
DEVICE void wait_stores() {
    emulator::running_block->copies.wait_written(Pending);
}

}  // namespace ptx
