// The one product that every kernel is made of, blocked for registers: C = A B, where A is read number by number with
// any strides, and B and C by vectors along their rows.
#pragma once
#include "simd.h"

namespace ISA {

// A matrix whose entry (m, k) is `data[m * row + k * column]`.
struct Strided {
    const float* data;
    int64_t row, column;

    Strided transposed() const { return {data, column, row}; }
    Strided from(int64_t m) const { return {data + m * row, row, column}; }
};

// Rows of vectors: entry (k, n) is `data[k * row + n]`.
struct Rows {
    float* data;
    int64_t row;

    Rows from(int64_t k) const { return {data + k * row, row}; }
};

constexpr int BLOCK_ROWS = 6, BLOCK_VECTORS = REGISTERS / 8;  // sums that fit the registers, and one row of B

// How 32 bits of A and B are multiplied.
struct Single {
    static INLINE Floats splat(const float* number) { return ISA::splat(*number); }
    static INLINE Floats add(Floats sum, Floats a, Floats b) { return sum + a * b; }
};

template <class Kind, int M, int N, class Finish>
INLINE void block_product(Strided a, Rows b, Rows c, int64_t depth, int column, const Finish& finish) {
    Floats sums[M][N] = {};
    const float *left = a.data, *right = b.data + column;
    for (int64_t k = 0; k < depth; ++k, left += a.column, right += b.row) {
        Floats vectors[N];
        for (int n = 0; n < N; ++n) vectors[n] = load(right + n * LANES);
        for (int m = 0; m < M; ++m) {
            const Floats number = Kind::splat(left + m * a.row);
            for (int n = 0; n < N; ++n) sums[m][n] = Kind::add(sums[m][n], number, vectors[n]);
        }
    }
    for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) {
            float* to = c.data + m * c.row + column + n * LANES;
            store(to, finish(sums[m][n], to, column + n * LANES));
        }
}

template <class Kind, int M, int N, class Finish>
INLINE void last_rows(int rows, Strided a, Rows b, Rows c, int64_t depth, int column, const Finish& finish) {
    if constexpr (M > 0) {
        if (rows == M) return block_product<Kind, M, N>(a, b, c, depth, column, finish);
        last_rows<Kind, M - 1, N>(rows, a, b, c, depth, column, finish);
    }
}

// As many rows at a time as keep both multipliers busy.
template <class Kind, int M, int N, class Finish>
INLINE int blocks(int first, int rows, Strided a, Rows b, Rows c, int64_t depth, int column, const Finish& finish) {
    for (; first + M <= rows; first += M)
        block_product<Kind, M, N>(a.from(first), b, c.from(first), depth, column, finish);
    return first;
}

template <class Kind, int N, class Finish>
__attribute__((noinline)) void panel(Strided a, Rows b, Rows c, int rows, int64_t depth, int column, Finish finish) {
    int m = 0;
    if constexpr ((2 * BLOCK_ROWS + 1) * N < REGISTERS)
        m = blocks<Kind, 2 * BLOCK_ROWS, N>(m, rows, a, b, c, depth, column, finish);
    m = blocks<Kind, BLOCK_ROWS, N>(m, rows, a, b, c, depth, column, finish);
    last_rows<Kind, BLOCK_ROWS - 1, N>(rows - m, a.from(m), b, c.from(m), depth, column, finish);
}

// finish(sum, place, column): what to store at a place of C, `LANES` numbers from some column on.
template <class Kind = Single, class Finish>
INLINE void product(Strided a, Rows b, Rows c, int rows, int columns, int64_t depth, const Finish& finish) {
    int n = 0;
    for (; n + BLOCK_VECTORS * LANES <= columns; n += BLOCK_VECTORS * LANES)
        panel<Kind, BLOCK_VECTORS>(a, b, c, rows, depth, n, finish);
    if constexpr (BLOCK_VECTORS > 2)
        for (; n + 2 * LANES <= columns; n += 2 * LANES) panel<Kind, 2>(a, b, c, rows, depth, n, finish);
    for (; n < columns; n += LANES) panel<Kind, 1>(a, b, c, rows, depth, n, finish);
}

// Ways to finish.
struct Scaled {
    float scale;
    INLINE Floats operator()(Floats sum, const float*, int) const { return sum * scale; }
};
struct Added {
    INLINE Floats operator()(Floats sum, const float* place, int) const { return load(place) + sum; }
};
struct AddedToScaled {
    const float* scales;  // one for each column
    INLINE Floats operator()(Floats sum, const float* place, int column) const {
        return load(place) * load(scales + column) + sum;
    }
};

}  // namespace ISA
