// The queries of one tile, one to a lane: which rows of which heads, and the keys that each may look at.
#pragma once
#include <cmath>
#include <memory>

#include "number.h"
#include "scratch.h"
#include "transpose.h"

namespace ISA {

constexpr int TILE_ROWS = 64;  // of a tile, at most

INLINE int64_t clamp(int64_t number, int64_t least, int64_t most) {
    return number < least ? least : number > most ? most : number;
}
INLINE int round_up(int64_t number, int to) { return static_cast<int>((number + to - 1) / to * to); }

// One batch element: where its rows and keys begin, and how many there are.
struct Sequence {
    int64_t batch, first_row, len_q, first_key, len_k, offset;

    Sequence(const Call& call, int64_t b) : batch(b), first_row(0), len_q(call.len_q), first_key(0), len_k(call.len_k) {
        if (call.cu_q) {
            first_row = call.cu_q[b], len_q = call.cu_q[b + 1] - first_row;
            first_key = call.cu_k[b], len_k = call.cu_k[b + 1] - first_key;
        }
        offset = call.offsets ? call.offsets[b] : call.offset;
        stored = call.cu_q ? 0 : b;
    }
    int64_t stored;  // which batch element of the tensors holds it
};

// Where a row's number stands in (batch, heads, len_q), packed in (heads, all rows).
INLINE int64_t row_place(const Call& call, const Sequence& sequence, int64_t head, int64_t row) {
    return (sequence.stored * call.heads + head) * call.total_rows + sequence.first_row + row;
}

// The keys that a query may look at.
struct Sight {
    int64_t begin, end;

    Sight(const Call& call, const Sequence& sequence, int64_t head, int64_t row) : begin(0), end(sequence.len_k) {
        const int64_t position = row + sequence.offset;
        int64_t middle = position;
        if (call.centers.center) {
            const float center = std::floor(call.centers.center[row_place(call, sequence, head, row)]);
            if (center != center) end = 0;
            middle = center > -1e9f ? center < 3e9f ? static_cast<int64_t>(center) : 3000000000 : -1000000000;
        }
        if (call.left >= 0) begin = clamp(middle - call.left, 0, sequence.len_k);
        if (call.right >= 0) end = clamp(middle + call.right + 1, 0, end);
        if (call.causal) end = clamp(position + 1, 0, end);
    }
};

// The order in which queries are put into tiles: their own, or that of their centres.
class Order {
  public:
    explicit Order(const Call& call) : call(call) {
        if (!call.centers.center) return;
        rows.reset(new int32_t[call.heads * call.total_rows * (call.cu_q ? 1 : call.batch) + 1]);
        const std::unique_ptr<int64_t[]> begins(new int64_t[2 * call.len_k + 2]), places(new int64_t[call.len_q + 1]);
        for (int64_t b = 0; b < call.batch; ++b)
            for (int64_t head = 0; head < call.heads; ++head) sort(Sequence(call, b), head, begins.get(), places.get());
    }
    int64_t row(const Sequence& sequence, int64_t head, int64_t number) const {
        return rows ? rows[row_place(call, sequence, head, number)] : number;
    }

  private:
    const Call& call;
    std::unique_ptr<int32_t[]> rows;

    // By the sum of a window's ends, counted.
    void sort(const Sequence& sequence, int64_t head, int64_t* begins, int64_t* places) const {
        std::memset(begins, 0, (2 * sequence.len_k + 2) * sizeof(int64_t));
        for (int64_t row = 0; row < sequence.len_q; ++row) {
            const Sight sight(call, sequence, head, row);
            places[row] = sight.begin + sight.end;
            ++begins[places[row] + 1];
        }
        for (int64_t i = 0; i <= 2 * sequence.len_k; ++i) begins[i + 1] += begins[i];
        int32_t* found = rows.get() + row_place(call, sequence, head, 0);
        for (int64_t row = 0; row < sequence.len_q; ++row) found[begins[places[row]]++] = static_cast<int32_t>(row);
    }
};

// How the rows of the heads that share keys are cut into tiles: short heads several together, longer ones each alone.
struct Tiling {
    int64_t len_q, group, rows, per_head, heads_together, count;

    Tiling(const Call& call, int64_t len_q, int most, bool heads_apart = false) : len_q(len_q), group(call.group()) {
        rows = len_q < most ? len_q : most;
        per_head = rows ? (len_q + rows - 1) / rows : 0;
        heads_together = per_head == 1 && !heads_apart && !call.centers.center ? clamp(most / rows, 1, group) : 1;
        count = per_head * ((group + heads_together - 1) / heads_together);
    }
};

struct RowTile {
    int count, width;  // rows, and lanes: a multiple of LANES
    int64_t batch, kv_head;
    int64_t head[TILE_ROWS], row[TILE_ROWS];  // counted in the batch element
    alignas(ALIGNMENT) int32_t begin[TILE_ROWS], end[TILE_ROWS];
    int64_t first, last;                // keys that any row may look at
    int64_t common_first, common_last;  // keys that every row may look at

    bool gaps;  // whether no row may look at some key between `first` and `last`

    RowTile(const Call& call, const Sequence& sequence, const Tiling& tiling, const Order& order, int64_t kv_head,
            int64_t number)
        : count(0), batch(sequence.batch), kv_head(kv_head) {
        const int64_t head_begin = number / tiling.per_head * tiling.heads_together;
        const int64_t row_begin = number % tiling.per_head * tiling.rows;
        for (int64_t h = head_begin; h < head_begin + tiling.heads_together && h < tiling.group; ++h)
            for (int64_t i = row_begin; i < row_begin + tiling.rows && i < tiling.len_q; ++i) {
                head[count] = kv_head * tiling.group + h;
                row[count] = order.row(sequence, head[count], i);
                ++count;
            }
        width = round_up(count, LANES);
        look(call, sequence);
    }
    // Whether a key lies in the sight of the lanes from `lane` on.
    INLINE Ints sees(int32_t key, int lane) const { return (load(begin + lane) <= key) & (load(end + lane) > key); }
    bool sees_all(int64_t from, int64_t to) const { return common_first <= from && to <= common_last; }

  private:
    void look(const Call& call, const Sequence& sequence) {
        first = sequence.len_k, last = 0, common_first = 0, common_last = sequence.len_k, gaps = false;
        for (int i = 0; i < width; ++i) {
            begin[i] = end[i] = 0;
            if (i >= count) continue;
            const Sight sight(call, sequence, head[i], row[i]);
            begin[i] = static_cast<int32_t>(sight.begin), end[i] = static_cast<int32_t>(sight.end);
            if (sight.begin < sight.end) {
                gaps |= last > 0 && (sight.begin > last || sight.end < first);
                first = sight.begin < first ? sight.begin : first, last = sight.end > last ? sight.end : last;
            }
            common_first = sight.begin > common_first ? sight.begin : common_first;
            common_last = sight.end < common_last ? sight.end : common_last;
        }
        if (first > last) first = last = 0;
    }
};

// A tile's rows of a tensor (batch, heads, rows, columns) as float32: row by row, and with rows as lanes. Lanes without
// a row are 0, and so are columns up to a multiple of LANES.
struct TileRows {
    float *rows, *lanes;  // rows[lane * padded + column], lanes[column * width + lane]
    int padded;

    static size_t size(int64_t columns) { return 2 * TILE_ROWS * (round_up(columns, LANES) + LANES) * sizeof(float); }
    TileRows(Scratch& scratch, int64_t columns) : padded(round_up(columns, LANES)) {
        rows = scratch.take(TILE_ROWS * padded), lanes = scratch.take(TILE_ROWS * padded);
    }
    void fetch(const RowTile& tile, const Sequence& sequence, const Tensor& tensor, int64_t columns) {
        for (int i = 0; i < tile.width; ++i) {
            float* to = rows + i * padded;
            const int64_t filled = i < tile.count ? columns : 0;
            if (filled) {
                const char* from = tensor.at(sequence.stored, tile.head[i], sequence.first_row + tile.row[i]);
                widen(to, from, tensor.strides[3], columns, tensor.number);
            }
            std::memset(to + filled, 0, (padded - filled) * sizeof(float));
        }
        transpose(lanes, tile.width, rows, padded, tile.width, padded);
    }
    // Of what stands in `lanes`, each lane times its factor; `columns` of it.
    void put(const RowTile& tile, const Sequence& sequence, const Tensor& tensor, int64_t columns,
             const float* factors) {
        for (int c = 0; c < columns; ++c)
            for (int i = 0; i < tile.width; i += LANES) {
                float* place = lanes + c * tile.width + i;
                store(place, load(place) * load(factors + i));
            }
        transpose(rows, padded, lanes, tile.width, padded, tile.width);
        for (int i = 0; i < tile.count; ++i) {
            char* to = tensor.at(sequence.stored, tile.head[i], sequence.first_row + tile.row[i]);
            narrow(to, rows + i * padded, tensor.strides[3], columns, tensor.number);
        }
    }
};

}  // namespace ISA
