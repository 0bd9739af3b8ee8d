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
INLINE Floats rounded(Floats numbers) { return as_floats(bits_of(numbers) + 0x8000); }

#if defined(__AMX_BF16__)
constexpr int SQUARE = 16;  // rows and columns that a register of the matrix unit holds

// The compiler does not know that these instructions read memory.
INLINE void written() { __asm__ volatile("" ::: "memory"); }

// What the matrix unit's registers hold, for as long as a thread uses them.
struct MatrixUnit {
    MatrixUnit() {
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
    ~MatrixUnit() { _tile_release(); }
    MatrixUnit(const MatrixUnit&) = delete;
};

// One or two squares of rows by one or two of columns.
template <int M, int N, class Finish>
INLINE void square_product(Strided a, Rows b, Rows c, int64_t depth, int column, const Finish& finish) {
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
    for (int m = 0; m < M; ++m)
        for (int i = 0; i < SQUARE; ++i)
            for (int n = 0; n < N; ++n) {
                float* to = c.data + (m * SQUARE + i) * c.row + column + n * SQUARE;
                store(to, finish(load(sums[m][n] + i * SQUARE), to, column + n * SQUARE));
            }
}

template <int M, class Finish>
INLINE void square_rows(Strided a, Rows b, Rows c, int columns, int64_t depth, const Finish& finish) {
    int n = 0;
    for (; n + 2 * SQUARE <= columns; n += 2 * SQUARE) square_product<M, 2>(a, b, c, depth, n, finish);
    if (n < columns) square_product<M, 1>(a, b, c, depth, n, finish);
}
#else
struct MatrixUnit {
    MatrixUnit() {}
};
#endif

// C = A B of pairs. Of A the pairs of a row lie side by side, and rows and depth, padded with 0, go to multiples of
// PAD_ROWS and PAD_DEPTH; so do the rows of C.
constexpr int PAD_ROWS = 16, PAD_DEPTH = 16;

template <class Finish>
INLINE void product_of_pairs(Strided a, Rows b, Rows c, int rows, int columns, int64_t depth, const Finish& finish) {
    depth = round_up(depth, PAD_DEPTH);
#if defined(__AMX_BF16__)
    int m = 0;
    for (; m + 2 * SQUARE <= round_up(rows, SQUARE); m += 2 * SQUARE)
        square_rows<2>(a.from(m), b, c.from(m), columns, depth, finish);
    if (m < rows) square_rows<1>(a.from(m), b, c.from(m), columns, depth, finish);
#else
    product<BFloat16Pair>(a, b, c, rows, columns, depth, finish);
#endif
}

// The operands of one tile of queries and the keys that it meets, as pairs.
class PairTiles {
  public:
    static bool serve(const Call& call) {
        return FAST_PAIRS && call.key.number == Number::bfloat16 && call.value.number == Number::bfloat16;
    }
    static size_t size(const Call& call) {
        if (!serve(call)) return 0;
        const int64_t features = round_up(call.head_dim, 2 * PAD_DEPTH), columns = round_up(call.value_dim, PAD_ROWS);
        return (features / 2 * (TILE_ROWS + TILE_KEYS) + columns * TILE_KEYS + TILE_KEYS / 2 * TILE_ROWS) *
               sizeof(float);
    }
    PairTiles(Scratch& scratch, const Call& call)
        : call(call), features(round_up(call.head_dim, 2 * PAD_DEPTH)), columns(round_up(call.value_dim, PAD_ROWS)) {
        if (!serve(call)) return;
        queries = scratch.take(features / 2 * TILE_ROWS), keys = scratch.take(features / 2 * TILE_KEYS);
        values = scratch.take(columns * TILE_KEYS / 2), turned = scratch.take(columns * TILE_KEYS / 2);
        weights = scratch.take(TILE_KEYS / 2 * TILE_ROWS);
    }

    void fetch_query(const TileRows& query, int width) {
        const auto feature = [&](int c, int i) {
            return c < query.padded ? load(query.lanes + c * width + i) : Floats{};
        };
        for (int c = 0; c < features; c += 2)
            for (int i = 0; i < width; i += LANES)
                store(queries + c / 2 * width + i, joined(feature(c, i), feature(c + 1, i)));
    }
    // scores[j * width + lane] of the range's keys.
    template <class Finish>
    void find_scores(const Sequence& sequence, int64_t kv_head, KeyRange range, const bool* seen, float* scores,
                     int width, const Finish& finish) {
        const Strided key = fetch_keys(sequence, kv_head, range, seen);
        product_of_pairs(key, {queries, width}, {scores, width}, range.count(), width, features / 2, finish);
    }
    // sums[column * width + lane] of values times weights[j * width + lane].
    template <class Finish>
    void add_values(const Sequence& sequence, int64_t kv_head, KeyRange range, const bool* seen, const float* found,
                    float* sums, int width, const Finish& finish) {
        fetch_values(sequence, kv_head, range, seen);
        fetch_weights(found, range.count(), width);
        product_of_pairs({turned, TILE_KEYS / 2, 1}, {weights, width}, {sums, width}, static_cast<int>(call.value_dim),
                         width, (range.count() + 1) / 2, finish);
    }

  private:
    const Call& call;
    const int features, columns;                 // padded
    float* queries = nullptr;                    // (feature pair, lane)
    float* keys = nullptr;                       // (key, feature pair)
    float* weights = nullptr;                    // (key pair, lane)
    float *values = nullptr, *turned = nullptr;  // (key pair, column), (column, key pair)

    static const uint16_t* row_of(const Tensor& tensor, const Sequence& sequence, int64_t kv_head, int64_t key) {
        return reinterpret_cast<const uint16_t*>(tensor.at(sequence.stored, kv_head, sequence.first_key + key));
    }
    // Where they lie, if they lie so that they can be taken as pairs.
    Strided fetch_keys(const Sequence& sequence, int64_t kv_head, KeyRange range, const bool* seen) const {
        const Tensor& from = call.key;
        if (!seen && from.strides[3] == 1 && from.strides[2] % 2 == 0 && features == call.head_dim &&
            range.count() % PAD_ROWS == 0)
            return {reinterpret_cast<const float*>(row_of(from, sequence, kv_head, range.begin)), from.strides[2] / 2,
                    1};
        auto* to = reinterpret_cast<uint16_t*>(keys);
        for (int j = 0; j < round_up(range.count(), PAD_ROWS); ++j, to += features)
            copy_row(to, from, sequence, kv_head, range, j, call.head_dim, features, seen);
        return {keys, features / 2, 1};
    }
    // Row j of the range, padded with 0; what nobody looks at is 0 too.
    static void copy_row(uint16_t* to, const Tensor& from, const Sequence& sequence, int64_t kv_head, KeyRange range,
                         int j, int64_t count, int64_t padded, const bool* seen) {
        const int64_t filled = j < range.count() && (!seen || seen[j]) ? count : 0;
        if (filled) {
            const uint16_t* row = row_of(from, sequence, kv_head, range.begin + j);
            if (from.strides[3] == 1)
                std::memcpy(to, row, filled * sizeof(uint16_t));
            else
                for (int64_t c = 0; c < filled; ++c) to[c] = row[c * from.strides[3]];
        }
        std::memset(to + filled, 0, (padded - filled) * sizeof(uint16_t));
    }
    void fetch_values(const Sequence& sequence, int64_t kv_head, KeyRange range, const bool* seen) const {
        using Halves = uint16_t __attribute__((vector_size(LANES * 2)));
        const Tensor& from = call.value;
        const bool direct = from.strides[3] == 1 && columns == call.value_dim;
        auto* room = reinterpret_cast<uint16_t*>(turned);  // free until the turn
        const auto row = [&](int j, uint16_t* room) {
            if (direct && j < range.count() && (!seen || seen[j]))
                return row_of(from, sequence, kv_head, range.begin + j);
            copy_row(room, from, sequence, kv_head, range, j, call.value_dim, columns, seen);
            return static_cast<const uint16_t*>(room);
        };
        const int pairs = round_up((range.count() + 1) / 2, PAD_DEPTH);
        for (int pair = 0; pair < pairs; ++pair) {
            const uint16_t *even = row(2 * pair, room), *odd = row(2 * pair + 1, room + columns);
            for (int c = 0; c < columns; c += LANES) {
                const Words low = __builtin_convertvector(load_as<Halves>(even + c), Words);
                const Words high = __builtin_convertvector(load_as<Halves>(odd + c), Words);
                store(values + pair * columns + c, low | high << 16);
            }
        }
        transpose(turned, TILE_KEYS / 2, values, columns, pairs, columns);
    }
    void fetch_weights(const float* found, int count, int width) const {
        const int pairs = round_up((count + 1) / 2, PAD_DEPTH);
        const auto weight = [&](int j, int i) { return j < count ? rounded(load(found + j * width + i)) : Floats{}; };
        for (int pair = 0; pair < pairs; ++pair)
            for (int i = 0; i < width; i += LANES)
                store(weights + pair * width + i, joined(weight(2 * pair, i), weight(2 * pair + 1, i)));
    }
};

}  // namespace ISA
