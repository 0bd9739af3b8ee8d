// Squares of LANES x LANES numbers, turned in registers.
#pragma once
#include "simd.h"

namespace ISA {

// Of two vectors, runs of `Width` lanes: the even runs of both, or the odd ones.
template <int Width>
INLINE Floats runs(Floats a, Floats b, bool odd) {
    Ints places;
    for (int i = 0; i < LANES; ++i) {
        const int run = i / Width;
        places[i] = (run % 2 ? LANES + i - Width : i) + (odd ? Width : 0);
    }
#if defined(__clang__)
    Floats found;
    for (int i = 0; i < LANES; ++i) found[i] = places[i] < LANES ? a[places[i]] : b[places[i] - LANES];
    return found;
#else
    return __builtin_shuffle(a, b, places);
#endif
}

template <int Width>
INLINE void turn(Floats (&rows)[LANES]) {
    if constexpr (Width < LANES) {
        for (int i = 0; i < LANES; ++i)
            if (!(i & Width)) {
                const Floats even = runs<Width>(rows[i], rows[i + Width], false);
                rows[i + Width] = runs<Width>(rows[i], rows[i + Width], true);
                rows[i] = even;
            }
        turn<2 * Width>(rows);
    }
}

// `to[c * to_row + r] = from[r * from_row + c]`, for counts of rows and columns that are multiples of LANES.
inline void transpose(float* to, int64_t to_row, const float* from, int64_t from_row, int rows, int columns) {
    for (int r = 0; r < rows; r += LANES)
        for (int c = 0; c < columns; c += LANES) {
            Floats square[LANES];
            for (int i = 0; i < LANES; ++i) square[i] = load(from + (r + i) * from_row + c);
            turn<1>(square);
            for (int i = 0; i < LANES; ++i) store(to + (c + i) * to_row + r, square[i]);
        }
}

}  // namespace ISA
