// The arithmetic of one product.
#pragma once

namespace emulator {

// d (64 x columns) += a (64 x 16) b (16 x columns), all row by row; columns is a multiple of 16.
void multiply(float* d, const float* a, const float* b, int columns);

}  // namespace emulator
