// Four 8x8 matrices of 16-bit numbers from the lanes' fragments to shared memory.
#pragma once
#include "emulator/matrices.h"
#include "ptx/target.h"

namespace ptx {

DEVICE void store_matrices(uint32_t row, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3) {
    emulator::store_matrices(*emulator::running_block, row, {m0, m1, m2, m3}, false);
}

DEVICE void store_matrices_transposed(uint32_t row, uint32_t m0, uint32_t m1, uint32_t m2, uint32_t m3) {
    emulator::store_matrices(*emulator::running_block, row, {m0, m1, m2, m3}, true);
}

}  // namespace ptx
