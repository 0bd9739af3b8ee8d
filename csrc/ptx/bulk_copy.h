// The copy engine: tiles of tensors and runs of bytes, in and out of shared memory, one thread issuing.
#pragma once
#include "ptx/target.h"
#include "ptx/tensor_map.h"

namespace ptx {

DEVICE void prefetch(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

// One box at (column, row, head, batch); its bytes count on the barrier, also those outside the tensor.
DEVICE void load_tile(uint32_t destination, const TensorMap& map, uint32_t barrier, int column, int row, int head,
                      int batch) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
        "[%2];" ::"r"(destination),
        "l"(&map), "r"(barrier), "r"(column), "r"(row), "r"(head), "r"(batch)
        : "memory");
}

// A run of bytes: source, destination and size are multiples of 16.
DEVICE void load_bytes(uint32_t destination, const void* source, int bytes, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(destination),
        "l"(source), "r"(bytes), "r"(barrier)
        : "memory");
}

DEVICE void store_tile(const TensorMap& map, uint32_t source, int column, int row, int head, int batch) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
                 "r"(source), "r"(column), "r"(row), "r"(head), "r"(batch)
                 : "memory");
}

// Adds floats from shared to global memory, each addition atomic: source, destination and size are multiples of 16.
DEVICE void add_floats(float* destination, uint32_t source, int bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(destination),
                 "r"(source), "r"(bytes)
                 : "memory");
}

// Ends the group of stores and additions that this thread has issued since the last one.
DEVICE void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until at most Pending of this thread's groups still read shared memory.
template <int Pending>
DEVICE void wait_stores_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
}

// Until at most Pending of this thread's groups are still under way.
template <int Pending>
DEVICE void wait_stores() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(Pending) : "memory");
}

}  // namespace ptx
