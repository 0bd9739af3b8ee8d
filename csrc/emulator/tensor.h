// What the copy engine knows of a tensor in global memory.
#pragma once
#include <cstdint>

namespace emulator {

constexpr int BOX_COLUMNS = 64;
constexpr int ELEMENT_BYTES = 2;
constexpr int ROW_BYTES = BOX_COLUMNS * ELEMENT_BYTES;

// Sizes (columns, rows, heads, batches), columns side by side, other strides in bytes. Boxes are
// BOX_COLUMNS x box_rows. Hardware wants it in constant or parameter memory, aligned to 64 bytes.
struct alignas(64) Tensor {
    const char* base;
    int64_t sizes[4];
    int64_t strides[3];
    int box_rows;
};

// Where a box begins.
struct Place {
    int column, row, head, batch;
};

}  // namespace emulator
