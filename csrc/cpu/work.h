// What there is to do: tiles of queries, and for each its keys.
#pragma once
#include "parallel.h"
#include "row_tile.h"

namespace ISA {

constexpr int TILE_KEYS = 128;  // of a tile, at most

struct KeyRange {
    int64_t begin, end;
    int count() const { return static_cast<int>(end - begin); }
};

// The keys [first, last) in tiles; each but the first begins at a multiple of their size.
class KeyRanges {
  public:
    KeyRanges(int64_t first, int64_t last, int64_t size = TILE_KEYS) : first(first), last(last), size(size) {}
    struct Iterator {
        int64_t begin, last, size;
        KeyRange operator*() const { return {begin, next()}; }
        void operator++() { begin = next(); }
        bool operator!=(const Iterator& other) const { return begin != other.begin; }

      private:
        int64_t next() const {
            const int64_t end = (begin / size + 1) * size;
            return end < last ? end : last;
        }
    };
    Iterator begin() const { return {first, last, size}; }
    Iterator end() const { return {last, last, size}; }

  private:
    int64_t first, last, size;
};

// As many numbers as (batch, heads, len_q) has.
INLINE int64_t batch_rows(const Call& call) { return (call.cu_q ? 1 : call.batch) * call.heads * call.total_rows; }

// Calls function(sequence, tile, number, part) for so many parts of every tile of queries, on all threads; number: of the
// tile among all of them.
template <class Function>
void for_each_part(const Call& call, int64_t parts, Function function) {
    const int rows = call.tile_rows;
    const int64_t most = Tiling(call, call.len_q, rows).count;
    const Order order(call);
    parallel(call.threads, call.batch * call.kv_heads * most * parts, [&](int64_t item) {
        const int64_t tile = item / parts, head = tile / most;
        const Sequence sequence(call, head / call.kv_heads);
        const Tiling tiling(call, sequence.len_q, rows);
        const int64_t number = most - 1 - tile % most;  // causal ones are longest at the end
        if (number < tiling.count)
            function(sequence, RowTile(call, sequence, tiling, order, head % call.kv_heads, number), tile,
                     item % parts);
    });
}

// The same, whole.
template <class Function>
void for_each_tile(const Call& call, Function function) {
    for_each_part(call, 1,
                  [&](const Sequence& sequence, const RowTile& tile, int64_t, int64_t) { function(sequence, tile); });
}

// The same, but the tiles with the same rows of a batch element come one after another, on one thread, and each has
// rows of one head.
template <class Function>
void for_each_row(const Call& call, Function function) {
    const int rows = call.tile_rows;
    const int64_t most = Tiling(call, call.len_q, rows, true).per_head;
    const Order order(call);
    parallel(call.threads, call.batch * most, [&](int64_t item) {
        const Sequence sequence(call, item / most);
        const Tiling tiling(call, sequence.len_q, rows, true);
        if (item % most >= tiling.per_head) return;
        for (int64_t head = 0; head < call.heads; ++head) {
            const int64_t number = head % tiling.group * tiling.per_head + item % most;
            function(sequence, RowTile(call, sequence, tiling, order, head / tiling.group, number));
        }
    });
}

}  // namespace ISA
