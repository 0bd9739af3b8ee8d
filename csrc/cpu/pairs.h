// bfloat16 numbers two by two, neighbours along a product's depth in 32 bits: processors with AVX512-BF16 multiply and add
// a pair in one instruction, those with AMX a square of pairs. Sums are float32.
#pragma once
#include "key_tile.h"

namespace ISA {

#if defined(__AVX512BF16__)
constexpr bool FAST_PAIRS = true;
#else
constexpr bool FAST_PAIRS = false;  // numbers that are widened once are faster
#endif

INLINE Floats low_half(Floats pairs) { return as_floats(bits_of(pairs) << 16); }
INLINE Floats high_half(Floats pairs) { return as_floats(bits_of(pairs) & ~0xffff); }

// How `product` takes 32 bits as two numbers.
struct BFloat16Pair {
    static INLINE Floats splat(const float* number) {
        int32_t bits;
        std::memcpy(&bits, number, 4);
        return as_floats(ISA::splat(bits));
    }
    static INLINE Floats add(Floats sum, Floats a, Floats b) {
#if defined(__AVX512BF16__)
        return Floats(_mm512_dpbf16_ps(__m512(sum), __m512bh(__m512(a)), __m512bh(__m512(b))));
#else
        return sum + low_half(a) * low_half(b) + high_half(a) * high_half(b);
#endif
    }
};

// Pairs of the numbers in two vectors: cut off, which numbers that were bfloat16 bear; or rounded, halves away from 0.
INLINE Floats joined(Floats low, Floats high) {
    return as_floats((bits_of(low) >> 16 & 0xffff) | (bits_of(high) & ~0xffff));
}
INLINE Floats rounded(Floats numbers) { return numbers == numbers ? as_floats(bits_of(numbers) + 0x8000) : splat(NAN); }

#if defined(__AMX_BF16__)
constexpr int SQUARE = 16;  // rows and columns that a register of the matrix unit holds

// The compiler does not know that these instructions read memory.
INLINE void written() { __asm__ volatile("" ::: "memory"); }

// What the matrix unit's registers hold, for as long as a thread uses them.
class MatrixUnit {
  public:
    explicit MatrixUnit(bool used) : used(used) {
        if (!used) return;
        struct alignas(64) {
            uint8_t palette = 1, first = 0, zero[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } shapes;
        for (int i = 0; i < 8; ++i) shapes.bytes[i] = 4 * SQUARE, shapes.rows[i] = SQUARE;
        const void* place = &shapes;
        __asm__ volatile("" ::"r"(place) : "memory");
        _tile_loadconfig(place);
    }
    ~MatrixUnit() {
        if (used) _tile_release();
    }
    MatrixUnit(const MatrixUnit&) = delete;

  private:
    const bool used;
};

// One or two squares of rows by one or two of columns.
template <int M, int N, class Finish>
INLINE void square_product(Strided a, Rows b, Rows c, int rows, int64_t depth, int column, const Finish& finish) {
    alignas(ALIGNMENT) float sums[M][N][SQUARE * SQUARE];
    written();
    _tile_zero(0);
    if constexpr (N > 1) _tile_zero(1);
    if constexpr (M > 1) _tile_zero(2);
    if constexpr (M > 1 && N > 1) _tile_zero(3);
    for (int64_t k = 0; k < depth; k += SQUARE) {
        const float *left = a.data + k, *right = b.data + k * b.row + column;
        _tile_loadd(4, left, a.row * 4);
        _tile_loadd(6, right, b.row * 4);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (N > 1) {
            _tile_loadd(7, right + SQUARE, b.row * 4);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (M > 1) {
            _tile_loadd(5, left + SQUARE * a.row, a.row * 4);
            _tile_dpbf16ps(2, 5, 6);
            if constexpr (N > 1) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums[0][0], 4 * SQUARE);
    if constexpr (N > 1) _tile_stored(1, sums[0][N - 1], 4 * SQUARE);
    if constexpr (M > 1) _tile_stored(2, sums[M - 1][0], 4 * SQUARE);
    if constexpr (M > 1 && N > 1) _tile_stored(3, sums[M - 1][N - 1], 4 * SQUARE);
    written();
    for (int i = 0; i < M * SQUARE && i < rows; ++i)
        for (int n = 0; n < N; ++n) {
            float* to = c.data + i * c.row + column + n * SQUARE;
            store(to, finish(load(sums[i / SQUARE][n] + i % SQUARE * SQUARE), to, column + n * SQUARE));
        }
}

template <int M, class Finish>
INLINE void square_rows(Strided a, Rows b, Rows c, int rows, int columns, int64_t depth, const Finish& finish) {
    int n = 0;
    for (; n + 2 * SQUARE <= columns; n += 2 * SQUARE) square_product<M, 2>(a, b, c, rows, depth, n, finish);
    if (n < columns) square_product<M, 1>(a, b, c, rows, depth, n, finish);
}
#else
struct MatrixUnit {
    explicit MatrixUnit(bool) {}
};
#endif

// C = A B of pairs. Of A the pairs of a row lie side by side, there are rows, whatever they hold, up to a multiple of
// PAD_ROWS; the depth goes, padded with 0, to a multiple of PAD_DEPTH.
constexpr int PAD_ROWS = 16, PAD_DEPTH = 16;

template <class Finish>
INLINE void product_of_pairs(Strided a, Rows b, Rows c, int rows, int columns, int64_t depth, const Finish& finish) {
    depth = round_up(depth, PAD_DEPTH);
#if defined(__AMX_BF16__)
    int m = 0;
    for (; m + 2 * SQUARE <= round_up(rows, SQUARE); m += 2 * SQUARE)
        square_rows<2>(a.from(m), b, c.from(m), rows - m, columns, depth, finish);
    if (m < rows) square_rows<1>(a.from(m), b, c.from(m), rows - m, columns, depth, finish);
#else
    product<BFloat16Pair>(a, b, c, rows, columns, depth, finish);
#endif
}

// Whether the products of a call are made of pairs.
inline bool in_pairs(const Call& call) {
    return FAST_PAIRS && call.query.number == Number::bfloat16 && call.key.number == Number::bfloat16 &&
           call.value.number == Number::bfloat16;
}

// The keys, or values, of one tile.
class KeyPairs {
  public:
    static size_t size(int64_t columns, int slots = 1) {
        return (TILE_KEYS * depth(columns) + (slots + 1) * round_up(columns, PAD_ROWS) * (TILE_KEYS / 2)) *
               sizeof(float);
    }
    static int64_t depth(int64_t columns) { return round_up(columns, 2 * PAD_DEPTH) / 2; }

    // slots: how many turned tiles are kept at a time.
    KeyPairs(Scratch& scratch, const Tensor& tensor, int64_t columns, int slots = 1)
        : tensor(tensor),
          columns(columns),
          padded(round_up(columns, PAD_ROWS)),
          copies(scratch.take(TILE_KEYS * depth(columns))),
          by_pair(scratch.take(padded * (TILE_KEYS / 2))),
          turns(scratch.take(slots * padded * (TILE_KEYS / 2))) {}

    // (key, feature pair): where they lie, if they lie so that they can be taken as pairs. seen: as `KeyTiles` has it.
    Strided rows(const Sequence& sequence, int64_t kv_head, KeyRange range, const bool* seen) const {
        if (!seen && tensor.strides[3] == 1 && tensor.strides[2] % 2 == 0 && 2 * depth(columns) == columns &&
            range.count() % PAD_ROWS == 0)
            return {reinterpret_cast<const float*>(row(sequence, kv_head, range.begin)), tensor.strides[2] / 2, 1};
        auto* to = reinterpret_cast<uint16_t*>(copies);
        for (int j = 0; j < range.count(); ++j, to += 2 * depth(columns))
            copy(to, sequence, kv_head, range, j, 2 * depth(columns), seen);
        return {copies, depth(columns), 1};
    }
    // (feature, key pair).
    Strided turned(const Sequence& sequence, int64_t kv_head, KeyRange range, const bool* seen, int slot = 0) const {
        using Halves = uint16_t __attribute__((vector_size(LANES * 2)));
        const bool direct = tensor.strides[3] == 1 && padded == columns;
        float* turn = turns + slot * padded * (TILE_KEYS / 2);
        auto* room = reinterpret_cast<uint16_t*>(turn);  // free until the turn
        const auto fetch = [&](int j, uint16_t* room) {
            if (direct && j < range.count() && (!seen || seen[j])) return row(sequence, kv_head, range.begin + j);
            copy(room, sequence, kv_head, range, j, padded, seen);
            return static_cast<const uint16_t*>(room);
        };
        const int pairs = round_up((range.count() + 1) / 2, PAD_DEPTH);
        for (int pair = 0; pair < pairs; ++pair) {
            const uint16_t *even = fetch(2 * pair, room), *odd = fetch(2 * pair + 1, room + padded);
            for (int c = 0; c < padded; c += LANES) {
                const Words low = __builtin_convertvector(load_as<Halves>(even + c), Words);
                const Words high = __builtin_convertvector(load_as<Halves>(odd + c), Words);
                store(by_pair + pair * padded + c, low | high << 16);
            }
        }
        transpose(turn, TILE_KEYS / 2, by_pair, padded, pairs, padded);
        return {turn, TILE_KEYS / 2, 1};
    }

  private:
    const Tensor& tensor;
    const int64_t columns;
    const int padded;
    float *copies, *by_pair, *turns;

    const uint16_t* row(const Sequence& sequence, int64_t kv_head, int64_t key) const {
        return reinterpret_cast<const uint16_t*>(tensor.at(sequence.stored, kv_head, sequence.first_key + key));
    }
    // Row j of the range, padded with 0; what nobody looks at, or is past the end, is 0 too.
    void copy(uint16_t* to, const Sequence& sequence, int64_t kv_head, KeyRange range, int j, int64_t width,
              const bool* seen) const {
        const int64_t filled = j < range.count() && (!seen || seen[j]) ? columns : 0;
        if (filled) {
            const uint16_t* from = row(sequence, kv_head, range.begin + j);
            if (tensor.strides[3] == 1)
                std::memcpy(to, from, filled * sizeof(uint16_t));
            else
                for (int64_t c = 0; c < filled; ++c) to[c] = from[c * tensor.strides[3]];
        }
        std::memset(to + filled, 0, (width - filled) * sizeof(uint16_t));
    }
};

// A tile's queries, or what reaches their outputs: numbers that were bfloat16.
class RowPairs {
  public:
    static size_t size(int64_t columns) {
        return (KeyPairs::depth(columns) * TILE_ROWS + TILE_ROWS / 2 * round_up(columns, LANES)) * sizeof(float);
    }
    RowPairs(Scratch& scratch, int64_t columns)
        : depth(KeyPairs::depth(columns)),
          by_lane(scratch.take(depth * TILE_ROWS)),
          by_column(scratch.take(TILE_ROWS / 2 * round_up(columns, LANES))) {}

    // (feature pair, lane).
    Rows lanes(const TileRows& from, int width) const {
        const auto feature = [&](int64_t c, int i) {
            return c < from.padded ? load(from.lanes + c * width + i) : Floats{};
        };
        for (int64_t pair = 0; pair < depth; ++pair)
            for (int i = 0; i < width; i += LANES)
                store(by_lane + pair * width + i, joined(feature(2 * pair, i), feature(2 * pair + 1, i)));
        return {by_lane, width};
    }
    // (pair of lanes, feature).
    Rows rows(const TileRows& from, int width) const {
        const auto lane = [&](int i, int c) { return i < width ? load(from.rows + i * from.padded + c) : Floats{}; };
        for (int i = 0; i < round_up(width, 2 * PAD_DEPTH); i += 2)
            for (int c = 0; c < from.padded; c += LANES)
                store(by_column + i / 2 * from.padded + c, joined(lane(i, c), lane(i + 1, c)));
        return {by_column, from.padded};
    }

  private:
    const int64_t depth;
    float *by_lane, *by_column;
};

// A tile of weights or of scores' gradients, (key, lane) before.
class ScorePairs {
  public:
    static constexpr size_t SIZE = TILE_KEYS * TILE_ROWS * sizeof(float);
    explicit ScorePairs(Scratch& scratch)
        : by_lane(scratch.take(TILE_KEYS / 2 * TILE_ROWS)), by_key(scratch.take(TILE_KEYS / 2 * TILE_ROWS)) {}

    // (pair of keys, lane).
    Rows lanes(const float* from, int count, int width) const {
        const auto key = [&](int j, int i) { return j < count ? rounded(load(from + j * width + i)) : Floats{}; };
        for (int j = 0; j < round_up(count, 2 * PAD_DEPTH); j += 2)
            for (int i = 0; i < width; i += LANES) store(by_lane + j / 2 * width + i, joined(key(j, i), key(j + 1, i)));
        return {by_lane, width};
    }
    // (key, pair of lanes); 0 in lanes without a query.
    Strided keys(const float* from, int count, const RowTile& tile) const {
        using Halves = uint16_t __attribute__((vector_size(LANES * 2)));
        auto* to = reinterpret_cast<uint16_t*>(by_key);
        const int padded = round_up(tile.width, 2 * PAD_DEPTH);
        for (int j = 0; j < count; ++j, to += TILE_ROWS) {
            for (int i = 0; i < tile.width; i += LANES) {
                const Words bits = Words(bits_of(rounded(load(from + j * tile.width + i)))) >> 16;
                store(to + i, __builtin_convertvector(bits, Halves));
            }
            std::memset(to + tile.count, 0, (padded - tile.count) * sizeof(uint16_t));
        }
        return {by_key, TILE_ROWS / 2, 1};
    }

  private:
    float *by_lane, *by_key;
};

}  // namespace ISA
