// The backward of samples where only the drawn keys count: of the scores at them, and of the values that were gathered.
// Each item of work owns some queries' gradients, or some keys', and adds to them in the order of heads, queries, draws.
#pragma once
#include <memory>

#include "../work.h"

namespace ISA {

class SparseBackward {
  public:
    SparseBackward(const Call& call, const SparseGiven& given) : call(call), given(given), group(call.group()) {}

    void run() {
        constexpr int64_t ITEMS = 16, ROWS = 256;  // numbers that threads have no say in
        const int64_t row_parts = given.grad_query ? (call.len_q + ROWS - 1) / ROWS : 0;
        const int64_t key_heads = call.batch * call.kv_heads, query_items = call.batch * call.heads * row_parts;
        const int64_t key_parts = clamp(ITEMS / (key_heads ? key_heads : 1), 1, call.len_k / TILE_KEYS + 1);
        parallel(call.threads, query_items + key_heads * key_parts, [&](int64_t item) {
            if (item < query_items) {
                const int64_t head = item / row_parts, begin = item % row_parts * ROWS;
                const Sequence sequence(call, head / call.heads);
                return add_keys(sequence, head % call.heads, begin, clamp(begin + ROWS, 0, sequence.len_q));
            }
            item -= query_items;
            const int64_t head = item / key_parts, part = item % key_parts;
            const Sequence sequence(call, head / call.kv_heads);
            add_queries(sequence, head % call.kv_heads, part * sequence.len_k / key_parts,
                        (part + 1) * sequence.len_k / key_parts);
        });
    }

  private:
    const Call& call;
    const SparseGiven& given;
    const int64_t group;

    int64_t place(const Sequence& sequence, int64_t head, int64_t row, int64_t draw) const {
        return draw * batch_rows(call) + row_place(call, sequence, head, row);
    }
    // What the key's features are multiplied by in the query's gradient, and the other way round.
    float weight(const Sequence& sequence, int64_t head, int64_t row, int64_t place) const {
        const float score = given.score[place];
        if (!(score < LARGEST) && score == score) return 0;  // an infinite score is a constant
        float found = given.grad_score[place] * call.scale;
        if (call.softcap > 0) {
            float bias = 0;
            const Tensor& mask = call.mask.entries;
            if (call.mask.kind == Mask::FLOAT)
                widen(&bias,
                      mask.at(sequence.batch, head, row) + given.index[place] * mask.strides[3] * bytes(mask.number), 1,
                      1, mask.number);
            const float capped = (score - bias) / call.softcap;
            found *= 1 - capped * capped;
        }
        return found;
    }
    static void add(float* sum, const float* row, int width, float weight) {
        for (int c = 0; c < width; c += LANES) store(sum + c, load(sum + c) + weight * load(row + c));
    }
    static void fetch(float* to, const Tensor& from, const Sequence& sequence, int64_t head, int64_t row, int64_t dim) {
        widen(to, from.at(sequence.stored, head, row), from.strides[3], dim, from.number);
    }
    static void put(const Tensor& to, const Sequence& sequence, int64_t head, int64_t row, const float* from,
                    int64_t dim) {
        narrow(to.at(sequence.stored, head, row), from, to.strides[3], dim, to.number);
    }

    // The gradients of the queries [begin, end).
    void add_keys(const Sequence& sequence, int64_t head, int64_t begin, int64_t end) const {
        const int width = round_up(call.head_dim, LANES);
        Scratch scratch(2 * width * sizeof(float));
        float *sum = scratch.take(width), *key = scratch.take(width);
        std::memset(key, 0, width * sizeof(float));
        for (int64_t row = begin; row < end; ++row) {
            std::memset(sum, 0, width * sizeof(float));
            for (int64_t draw = 0; draw < given.count; ++draw) {
                const int64_t at = place(sequence, head, row, draw), index = given.index[at];
                if (index < 0) continue;
                fetch(key, call.key, sequence, head / group, sequence.first_key + index, call.head_dim);
                add(sum, key, width, weight(sequence, head, row, at));
            }
            put(given.grad_query, sequence, head, sequence.first_row + row, sum, call.head_dim);
        }
    }

    // The gradients of the keys [begin, end), and of their values.
    void add_queries(const Sequence& sequence, int64_t kv_head, int64_t begin, int64_t end) const {
        if (begin == end) return;
        const int width = given.grad_key ? round_up(call.head_dim, LANES) : 0;
        const int value_width = given.grad_value ? round_up(call.value_dim, LANES) : 0;
        const std::unique_ptr<float[]> sums(new float[(end - begin) * (width + value_width)]());
        float *keys = sums.get(), *values = keys + (end - begin) * width;
        Scratch scratch((width + value_width) * sizeof(float) + ALIGNMENT);
        float *query = scratch.take(width), *gradient = scratch.take(value_width);
        std::memset(query, 0, width * sizeof(float)), std::memset(gradient, 0, value_width * sizeof(float));
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
            for (int64_t row = 0; row < sequence.len_q; ++row)
                for (int64_t draw = 0; draw < given.count; ++draw) {
                    const int64_t at = place(sequence, head, row, draw), index = given.index[at];
                    if (index < begin || index >= end) continue;
                    const int64_t stored = sequence.first_row + row;
                    if (given.grad_key) {
                        fetch(query, call.query, sequence, head, stored, call.head_dim);
                        add(keys + (index - begin) * width, query, width, weight(sequence, head, row, at));
                    }
                    if (given.grad_value) {
                        Tensor from = given.grad_output;
                        from.data += draw * given.grad_output_stride * bytes(from.number);
                        fetch(gradient, from, sequence, head, stored, call.value_dim);
                        add(values + (index - begin) * value_width, gradient, value_width, 1);
                    }
                }
        for (int64_t key = begin; key < end; ++key) {
            const int64_t stored = sequence.first_key + key;
            if (given.grad_key)
                put(given.grad_key, sequence, kv_head, stored, keys + (key - begin) * width, call.head_dim);
            if (given.grad_value)
                put(given.grad_value, sequence, kv_head, stored, values + (key - begin) * value_width, call.value_dim);
        }
    }
};

inline void sparse_backward(const Call& call, const SparseGiven& given) { SparseBackward(call, given).run(); }

}  // namespace ISA
