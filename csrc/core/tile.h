// Tiles of 16-bit numbers in shared memory, as the copy engine writes and the matrix unit reads them: columns
// of 64 numbers, each column Rows x 128 bytes under the 128-byte swizzle.
#pragma once
#include <ptx/bulk_copy.h>
#include <ptx/product.h>
#include <ptx/store_matrix.h>

namespace core {

template <int Rows, int Width>
struct Tile {
    static constexpr int ROWS = Rows, WIDTH = Width;
    static constexpr int COLUMNS = (Width + 63) / 64;
    static constexpr int COLUMN_BYTES = Rows * 128;
    static constexpr int BYTES = COLUMNS * COLUMN_BYTES;

    // Loads rows [row, row + Rows) of one head; the map's boxes have Rows rows.
    static DEVICE void load(uint32_t tile, const ptx::TensorMap& map, uint32_t barrier, int row, int head, int batch) {
        UNROLL
        for (int column = 0; column < COLUMNS; ++column)
            ptx::load_tile(tile + column * COLUMN_BYTES, map, barrier, 64 * column, row, head, batch);
    }

    // Stores rows [from, from + 64) of the tile at row `row` of one head; the map's boxes have 64 rows.
    static DEVICE void store(const ptx::TensorMap& map, uint32_t tile, int from, int row, int head, int batch) {
        UNROLL
        for (int column = 0; column < COLUMNS; ++column)
            ptx::store_tile(map, tile + column * COLUMN_BYTES + from * 128, 64 * column, row, head, batch);
    }

    // Operand whose M or N index runs over the rows, and the bytes to its k-th step of 16 along the width.
    static DEVICE uint64_t by_row(uint32_t tile, int row = 0) { return ptx::operand(tile + row * 128, 1024); }
    static DEVICE int along_width(int k) { return k / 4 * COLUMN_BYTES + k % 4 * 32; }

    // Operand whose M or N index runs over the width, from `first` on, and the bytes to its k-th step of 16 along the
    // rows.
    static DEVICE uint64_t by_width(uint32_t tile, int first = 0) {
        return ptx::operand(tile + first / 64 * COLUMN_BYTES + first % 64 * 2, 1024, COLUMN_BYTES);
    }
    static DEVICE int along_rows(int k) { return k * 2048; }

    // Address of eight numbers (16 bytes) at a row and a multiple of 8 in the width.
    static DEVICE uint32_t chunk(uint32_t tile, int row, int width) {
        return tile + width / 64 * COLUMN_BYTES + row * 128 + ((width / 8 % 8) ^ (row % 8)) * 16;
    }
};

// Two accumulators a register, rounded, in the order in which the matrix unit takes its left operand.
template <class T, int Count>
DEVICE void pack_all(uint32_t (&packed)[Count / 2], const float (&values)[Count]) {
    UNROLL
    for (int i = 0; i < Count / 2; ++i) packed[i] = ptx::pack<T>(values[2 * i], values[2 * i + 1]);
}

// Stores a warpgroup's 64 x N packed accumulators at rows [row, row + 64) of the tile, from a column on.
template <class Tile, int Packed>
DEVICE void store_packed(uint32_t tile, int row, const uint32_t (&packed)[Packed], int column = 0) {
    const int lane = ptx::lane_index();
    const int own_row = row + ptx::warp_index() % 4 * 16 + lane % 16;
    UNROLL
    for (int i = 0; i < Packed / 4; ++i)
        ptx::store_matrices(Tile::chunk(tile, own_row, column + 16 * i + lane / 16 * 8), packed[4 * i],
                            packed[4 * i + 1], packed[4 * i + 2], packed[4 * i + 3]);
}

// The lane's row, and its first column, in a warpgroup's 64 x N accumulators: register i lies 8 (i / 2 % 2) rows
// and 8 (i / 4) + i % 2 columns further.
DEVICE int fragment_row() { return ptx::warp_index() % 4 * 16 + ptx::lane_index() / 4; }
DEVICE int fragment_column() { return ptx::lane_index() % 4 * 2; }

// d (64 x N) = rows [row, row + 64) of `left` times rows [right_row, right_row + N) of `right`, summed over the width.
template <class T, class Left, class Right, int Count>
DEVICE void multiply_rows(float (&d)[Count], uint32_t left, int row, uint32_t right, int right_row = 0) {
    static_assert(2 * Count <= Right::ROWS && Left::WIDTH == Right::WIDTH);
    const uint64_t a = Left::by_row(left, row), b = Right::by_row(right, right_row);
    UNROLL
    for (int k = 0; k < Left::WIDTH / 16; ++k)
        ptx::Product<T, 2 * Count>::template shared<ptx::K_MAJOR, ptx::K_MAJOR>(
            d, ptx::advance(a, Left::along_width(k)), ptx::advance(b, Right::along_width(k)), k > 0);
}

// d (64 x N) += `left` (64 rows) times columns [column, column + N) of `right`, whose rows are left's columns.
template <class T, class Left, class Right, int Count>
DEVICE void multiply_tiles(float (&d)[Count], uint32_t left, uint32_t right, int column) {
    static_assert(Left::WIDTH == Right::ROWS && 2 * Count <= Right::WIDTH);
    const uint64_t a = Left::by_row(left), b = Right::by_width(right, column);
    UNROLL
    for (int k = 0; k < Left::WIDTH / 16; ++k)
        ptx::Product<T, 2 * Count>::template shared<ptx::K_MAJOR, ptx::MN_MAJOR>(
            d, ptx::advance(a, Left::along_width(k)), ptx::advance(b, Right::along_rows(k)), 1);
}

// d (64 x Width) += packed (64 x Rows) times the tile, summed over its rows. accumulate = 0 ignores the old d.
template <class T, class Right, int Count, int Packed>
DEVICE void multiply_packed(float (&d)[Count], const uint32_t (&packed)[Packed], uint32_t right, int accumulate) {
    static_assert(Count == Right::WIDTH / 2 && Packed == Right::ROWS / 4);
    const uint64_t b = Right::by_width(right);
    UNROLL
    for (int k = 0; k < Right::ROWS / 16; ++k)
        ptx::Product<T, Right::WIDTH>::template registers<ptx::MN_MAJOR>(
            d, packed + 4 * k, ptx::advance(b, Right::along_rows(k)), k > 0 || accumulate);
}

}  // namespace core
