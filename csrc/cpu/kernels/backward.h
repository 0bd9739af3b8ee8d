// Gradients of query, key and value. Each item of work is some tiles of queries, with sums of its own for the keys that
// they look at; whoever finishes the last item of a key head adds these up, always in the same order.
#pragma once
#include <atomic>
#include <memory>

#include "../score_gradient.h"

namespace ISA {

// Gradients of some keys and values: rows of padded numbers.
struct KeySums {
    int64_t first = 0, last = 0;
    int width = 0, value_width = 0;
    std::unique_ptr<float, void (*)(void*)> memory{nullptr, std::free};

    void start(int64_t begin, int64_t end, int64_t dim, int64_t value_dim) {
        first = begin, last = end;
        width = round_up(dim, LANES), value_width = round_up(value_dim, LANES);
        memory.reset(static_cast<float*>(std::calloc((last - first) * (width + value_width) + 1, sizeof(float))));
        if (!memory) throw std::bad_alloc();
    }
    float* key(int64_t place) const { return memory.get() + (place - first) * width; }
    float* value(int64_t place) const { return memory.get() + (last - first) * width + (place - first) * value_width; }
    bool holds(int64_t place) const { return first <= place && place < last; }
};

class BackwardPass {
  public:
    BackwardPass(const Call& call, const Backward& given)
        : call(call), given(given), rows(call.tile_rows), order(call) {
        const int64_t tiles = Tiling(call, call.len_q, rows).count;
        key_heads = call.batch * call.kv_heads;
        parts = clamp((ITEMS + key_heads - 1) / (key_heads ? key_heads : 1), 1, tiles ? tiles : 1);
        sums.reset(new KeySums[key_heads * parts]);
        unfinished.reset(new std::atomic<int64_t>[key_heads]);
        for (int64_t i = 0; i < key_heads; ++i) unfinished[i] = parts;
    }
    void run() {
        parallel(call.threads, key_heads * parts, [&](int64_t item) {
            const int64_t key_head = item / parts;
            const Sequence sequence(call, key_head / call.kv_heads);
            add_part(sequence, key_head % call.kv_heads, parts - 1 - item % parts, sums[item]);
            if (unfinished[key_head].fetch_sub(1) == 1) finish(sequence, key_head);
        });
    }

  private:
    static constexpr int64_t ITEMS = 16;  // at least: a number that threads have no say in
    const Call& call;
    const Backward& given;
    int rows;
    Order order;
    int64_t key_heads, parts;
    std::unique_ptr<KeySums[]> sums;
    std::unique_ptr<std::atomic<int64_t>[]> unfinished;

    void add_part(const Sequence& sequence, int64_t kv_head, int64_t part, KeySums& own) const {
        const Tiling tiling(call, sequence.len_q, rows);
        const int64_t begin = part * tiling.count / parts, end = (part + 1) * tiling.count / parts;
        int64_t first = sequence.len_k, last = 0;
        for (int64_t number = begin; number < end; ++number) {
            const RowTile tile(call, sequence, tiling, order, kv_head, number);
            if (tile.first == tile.last) continue;
            first = tile.first < first ? tile.first : first, last = tile.last > last ? tile.last : last;
        }
        own.start(first < last ? first : 0, first < last ? last : 0, call.head_dim, call.value_dim);
        for (int64_t number = begin; number < end; ++number)
            add_tile(sequence, RowTile(call, sequence, tiling, order, kv_head, number), own);
    }

    void add_tile(const Sequence& sequence, const RowTile& tile, KeySums& own) const {
        const int width = tile.width;
        Scratch scratch(TileGradient::size(call) + TileRows::size(call.head_dim) + ScorePairs::SIZE);
        TileRows grad_query(scratch, call.head_dim);
        const ScorePairs pairs(scratch);
        TileGradient found(scratch, call, given, sequence, tile);
        std::memset(grad_query.lanes, 0, width * grad_query.padded * sizeof(float));
        Rows queries = {found.query.rows, own.width}, grad_outputs = {found.grad_output.rows, own.value_width};
        if (found.paired) {
            queries = found.paired_queries();
            if (given.grad_output) grad_outputs = found.paired_grad_outputs();
        }
        found.each([&](const ScoreGradient& block) {
            const int count = block.range.count();
            const Rows to_values = {own.value(block.range.begin), own.value_width};
            const Rows to_keys = {own.key(block.range.begin), own.width}, to_queries = {grad_query.lanes, width};
            // rows of keys, times the tile's queries or what reaches their outputs
            const auto add = [&](const float* scores, Rows rows, Rows to) {
                const int columns = static_cast<int>(to.row);
                if (found.paired)
                    product_of_pairs(pairs.keys(scores, count, tile), rows, to, count, columns, width / 2, Added{});
                else
                    product({scores, width, 1}, rows, to, count, columns, tile.count, Added{});
            };
            if (given.grad_output) add(block.weights, grad_outputs, to_values);
            if (block.slope)
                for (int at = 0; at < count * width; at += LANES)
                    store(block.gradient + at, load(block.gradient + at) * load(block.slope + at));
            if (found.paired)
                product_of_pairs(block.key, pairs.lanes(block.gradient, count, width), to_queries,
                                 static_cast<int>(call.head_dim), width, (count + 1) / 2, Added{});
            else
                product(block.key, {block.gradient, width}, to_queries, call.head_dim, width, count, Added{});
            add(block.gradient, queries, to_keys);
        });
        alignas(ALIGNMENT) float factors[TILE_ROWS];
        for (int i = 0; i < width; ++i) factors[i] = call.scale;
        grad_query.put(tile, sequence, given.grad_query, call.head_dim, factors);
        for (int i = 0; i < tile.count && given.grad_center; ++i) {
            const int64_t place = row_place(call, sequence, tile.head[i], tile.row[i]);
            const float sigma = call.centers.sigma[place];
            given.grad_center[place] = found.grad_center[i] / sigma,
            given.grad_sigma[place] = found.grad_sigma[i] / sigma;
        }
    }

    void finish(const Sequence& sequence, int64_t key_head) {
        const int64_t kv_head = key_head % call.kv_heads;
        KeySums* own = sums.get() + key_head * parts;
        const auto put = [&](int64_t key, const Tensor& to, int64_t dim, int width, float factor, auto part_of) {
            Scratch scratch(width * sizeof(float));
            float* total = scratch.take(width);
            std::memset(total, 0, width * sizeof(float));
            for (int64_t part = 0; part < parts; ++part)
                if (own[part].holds(key)) {
                    const float* found = part_of(own[part]);
                    for (int c = 0; c < width; c += LANES) store(total + c, load(total + c) + load(found + c));
                }
            for (int c = 0; c < width; c += LANES) store(total + c, load(total + c) * factor);
            narrow(to.at(sequence.stored, kv_head, sequence.first_key + key), total, to.strides[3], dim, to.number);
        };
        for (int64_t key = 0; key < sequence.len_k; ++key) {
            put(key, given.grad_key, call.head_dim, own->width, call.scale, [&](auto& sums) { return sums.key(key); });
            if (given.grad_value)
                put(key, given.grad_value, call.value_dim, own->value_width, 1,
                    [&](auto& sums) { return sums.value(key); });
        }
        for (int64_t part = 0; part < parts; ++part) own[part].memory.reset();
    }
};

inline void backward(const Call& call, const Backward& given) { BackwardPass(call, given).run(); }

}  // namespace ISA
