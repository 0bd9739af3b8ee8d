// Where a query may look: query i at the keys [i + offset - left, i + offset + right] that exist.
#pragma once
#include <cmath>

#include <ptx/target.h>

namespace core {

// What a prior lets a query see.
enum class Sight { ALL, WINDOW, CENTERS };

// Half-open.
struct Range {
    int begin, end;
    DEVICE bool empty() const { return begin >= end; }
};

DEVICE int clamp(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

// Unlimited sides are FAR, which no length reaches.
struct Window {
    static constexpr int FAR = 1 << 29;
    int left, right, offset;

    // Blocks of `size` keys that any of the rows looks at.
    DEVICE Range key_blocks(Range rows, int size, int len_k) const {
        const int begin = clamp(rows.begin + offset - left, 0, len_k);
        const int end = clamp(rows.end + offset + right, begin, len_k);
        return {begin / size, begin == end ? begin / size : (end + size - 1) / size};
    }

    // Blocks of `size` rows that look at any of the keys.
    DEVICE Range query_blocks(Range keys, int size, int len_q) const {
        const int begin = clamp(keys.begin - offset - right, 0, len_q);
        const int end = clamp(keys.end - offset + left, begin, len_q);
        return {begin / size, begin == end ? begin / size : (end + size - 1) / size};
    }

    // Whether every row looks at every key.
    DEVICE bool covers(Range rows, Range keys) const {
        return keys.begin >= rows.end - 1 + offset - left && keys.end - 1 <= rows.begin + offset + right;
    }

    DEVICE Range keys_of(int row, int len_k) const {
        const int begin = row + offset - left, end = row + offset + right + 1;
        return {begin < 0 ? 0 : begin, end > len_k ? len_k : end};
    }

    DEVICE Range rows_of(int key, int len_q) const {
        const int begin = key - offset - right, end = key - offset + left + 1;
        return {begin < 0 ? 0 : begin, end > len_q ? len_q : end};
    }
};

// Sets scores outside of each row's range to -inf, in a warpgroup's 64 x N accumulators. `ranges`: of the lane's
// two rows; `first`: the position of the lane's first column.
template <int Count>
DEVICE void mask_outside(float (&scores)[Count], const Range (&ranges)[2], int first) {
    const int begin[2] = {ranges[0].begin - first, ranges[1].begin - first};
    const int end[2] = {ranges[0].end - first, ranges[1].end - first};
    UNROLL
    for (int i = 0; i < Count; ++i) {
        const int column = i / 4 * 8 + i % 2, row = i / 2 % 2;
        if (column < begin[row] || column >= end[row]) scores[i] = -INFINITY;
    }
}

}  // namespace core
