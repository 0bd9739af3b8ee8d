// Stores of 8x8 matrices from the lanes' fragments.
#pragma once
#include <array>
#include <cstdint>

namespace emulator {

struct Block;

// Lane 8 i + r gives the address of row r of matrix i; its own fragments hold a row's, or a column's, pair.
void store_matrices(Block& block, uint32_t row, const std::array<uint32_t, 4>& fragments, bool transposed);

}  // namespace emulator
