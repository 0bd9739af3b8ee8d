// Output and lse of softmax attention, or the output of weights that are linear, relu or exp of their scores. Where there
// are few tiles of queries, as in a step of decoding, each one's keys are divided too; whoever finishes the last part of
// a tile adds these up, always in the same order.
#pragma once
#include <atomic>

#include "../activation.h"
#include "../factors.h"
#include "../online_softmax.h"
#include "../pairs.h"

namespace ISA {

// One tile of queries: its state and sums over the keys met so far.
class ForwardTile {
  public:
    static size_t size(const Call& call) {
        return TileRows::size(call.head_dim) + TileRows::size(call.value_dim) + KeyTiles::size(call.head_dim) +
               KeyTiles::size(call.value_dim) + KeyPairs::size(call.head_dim) + KeyPairs::size(call.value_dim) +
               RowPairs::size(call.head_dim) + ScorePairs::SIZE + MaskTile::SIZE +
               TILE_KEYS * TILE_ROWS * sizeof(float);
    }
    ForwardTile(Scratch& scratch, const Call& call, const Sequence& sequence, const RowTile& tile)
        : call(call),
          sequence(sequence),
          tile(tile),
          query(scratch, call.head_dim),
          output(scratch, call.value_dim),
          keys(scratch, call.key, call.head_dim),
          values(scratch, call.value, call.value_dim),
          key_pairs(scratch, call.key, call.head_dim),
          value_pairs(scratch, call.value, call.value_dim),
          query_pairs(scratch, call.head_dim),
          weight_pairs(scratch),
          mask(scratch, call.mask),
          gaussians(call, sequence, tile),
          factors(call, tile, gaussians),
          scores(scratch.take(TILE_KEYS * TILE_ROWS)) {
        std::memset(output.lanes, 0, tile.width * output.padded * sizeof(float));
    }

    void meet(KeyRanges ranges) {
        query.fetch(tile, sequence, call.query, call.head_dim);
        const bool few = tile.count <= FEW, paired = in_pairs(call) && !few;
        const MatrixUnit unit(paired);
        if (paired) queries = query_pairs.lanes(query, tile.width);
        if (few) std::memset(output.rows, 0, tile.width * output.padded * sizeof(float));
        for (const KeyRange range : ranges) {
            if (!mask.fetch(tile, range.begin, range.end)) continue;
            if (few)
                multiply_few_keys(range);
            else
                multiply_keys(range);
            finish_scores(call, tile, mask, gaussians, range.begin, range.end, scores, nullptr);
            if (call.softmax())
                online.step(scores, range.count(), tile.width);
            else
                activate(call.selector, scores, range.count(), tile.width);
            factors.multiply(scores, range.begin, range.end);
            if (few)
                add_few_values(range);
            else
                add_values(range);
        }
        if (few) transpose(output.lanes, tile.width, output.rows, output.padded, tile.width, output.padded);
    }

    void put(const ForwardResults& results) {
        alignas(ALIGNMENT) float inverse[TILE_ROWS];
        for (int i = 0; i < tile.width; ++i)
            inverse[i] = !call.softmax() || online.total[i] == 0 ? 1 : 1 / online.total[i];
        output.put(tile, sequence, results.output, call.value_dim, inverse);
        for (int i = 0; i < tile.count && results.lse; ++i)
            results.lse[row_place(call, sequence, tile.head[i], tile.row[i])] = online.lse(i);
    }

    // A part of the keys: the state as numbers, that others' can be added to.
    static int64_t part_size(const Call& call) { return (2 + round_up(call.value_dim, LANES)) * TILE_ROWS; }
    void save(float* part) const {
        std::memcpy(part, online.top, sizeof online.top);
        std::memcpy(part + TILE_ROWS, online.total, sizeof online.total);
        std::memcpy(part + 2 * TILE_ROWS, output.lanes, tile.width * output.padded * sizeof(float));
    }
    void add(const float* part) {
        for (int i = 0; i < tile.width; i += LANES) {
            const Floats own = load(online.top + i), other = load(part + i), top = max(own, other);
            const Floats shrink = call.softmax() ? exp(own - top) : splat(1.0f);
            const Floats others = call.softmax() ? exp(other - top) : splat(1.0f);
            store(online.top + i, top);
            store(online.total + i, load(online.total + i) * shrink + load(part + TILE_ROWS + i) * others);
            for (int c = 0; c < call.value_dim; ++c) {
                float* sum = output.lanes + c * tile.width + i;
                store(sum, load(sum) * shrink + load(part + 2 * TILE_ROWS + c * tile.width + i) * others);
            }
        }
    }

  private:
    const Call& call;
    const Sequence& sequence;
    const RowTile& tile;
    TileRows query, output;
    KeyTiles keys, values;
    KeyPairs key_pairs, value_pairs;
    RowPairs query_pairs;
    ScorePairs weight_pairs;
    Rows queries = {};  // in pairs
    MaskTile mask;
    Gaussians gaussians;
    Factors factors;
    float* scores;
    OnlineSoftmax online;

    void multiply_keys(KeyRange range) {
        const Rows to = {scores, tile.width};
        if (in_pairs(call)) {
            const Strided key = key_pairs.rows(sequence, tile.kv_head, range, mask.seen());
            return product_of_pairs(key, queries, to, range.count(), tile.width, KeyPairs::depth(call.head_dim),
                                    Scaled{call.scale});
        }
        const Strided key = keys.fetch(sequence, tile.kv_head, range.begin, range.end, mask.seen());
        product(key, {query.lanes, tile.width}, to, range.count(), tile.width, call.head_dim, Scaled{call.scale});
    }
    void add_values(KeyRange range) {
        if (call.softmax())
            add_values(range, AddedToScaled{online.decay});
        else
            add_values(range, Added{});
    }
    template <class Finish>
    void add_values(KeyRange range, const Finish& finish) {
        const Rows to = {output.lanes, tile.width};
        if (in_pairs(call)) {
            const Strided value = value_pairs.turned(sequence, tile.kv_head, range, mask.seen());
            const Rows weights = weight_pairs.lanes(scores, range.count(), tile.width);
            return product_of_pairs(value, weights, to, static_cast<int>(call.value_dim), tile.width,
                                    (range.count() + 1) / 2, finish);
        }
        const Strided value = values.fetch(sequence, tile.kv_head, range.begin, range.end, mask.seen()).transposed();
        product(value, {scores, tile.width}, to, call.value_dim, tile.width, range.count(), finish);
    }

    // So few queries leave most lanes empty: vectors go along the features, and keys and values are read once, in order.
    static constexpr int FEW = 4;

    void multiply_few_keys(KeyRange range) {
        const Rows key = keys.fetch_rows(sequence, tile.kv_head, range.begin, range.end, mask.seen());
        std::memset(scores, 0, range.count() * tile.width * sizeof(float));
        for (int j = 0; j < range.count(); ++j)
            for (int i = 0; i < tile.count; ++i) {
                Floats sum = {};
                for (int c = 0; c < query.padded; c += LANES)
                    sum += load(key.data + j * key.row + c) * load(query.rows + i * query.padded + c);
                scores[j * tile.width + i] = sum_of(sum) * call.scale;
            }
    }
    void add_few_values(KeyRange range) {
        for (int i = 0; i < tile.count && call.softmax(); ++i)
            for (int c = 0; c < output.padded; c += LANES) {
                float* sum = output.rows + i * output.padded + c;
                store(sum, load(sum) * online.decay[i]);
            }
        const Rows value = values.fetch_rows(sequence, tile.kv_head, range.begin, range.end, mask.seen());
        product({scores, 1, tile.width}, value, {output.rows, output.padded}, tile.count, output.padded, range.count(),
                Added{});
    }
};

// In how many parts each tile's keys are taken: a number that threads have no say in.
inline int64_t parts_of_keys(const Call& call) {
    constexpr int64_t ITEMS = 16, FEWEST = 1024;  // of work, at least; keys of a part
    const int64_t tiles = call.batch * call.kv_heads * Tiling(call, call.len_q, call.tile_rows).count;
    return tiles == 0 ? 1 : clamp(ITEMS / tiles, 1, clamp(call.len_k / FEWEST, 1, ITEMS));
}

inline void forward(const Call& call, const ForwardResults& results) {
    const int64_t parts = parts_of_keys(call);
    if (parts == 1)
        return for_each_tile(call, [&](const Sequence& sequence, const RowTile& tile) {
            Scratch scratch(ForwardTile::size(call));
            ForwardTile forward(scratch, call, sequence, tile);
            forward.meet(KeyRanges(tile.first, tile.last));
            forward.put(results);
        });
    const int64_t tiles = call.batch * call.kv_heads * Tiling(call, call.len_q, call.tile_rows).count;
    const int64_t size = ForwardTile::part_size(call);
    const std::unique_ptr<float[]> saved(new float[tiles * parts * size]);
    const std::unique_ptr<std::atomic<int64_t>[]> unfinished(new std::atomic<int64_t>[tiles]);
    for (int64_t i = 0; i < tiles; ++i) unfinished[i] = parts;
    for_each_part(call, parts, [&](const Sequence& sequence, const RowTile& tile, int64_t number, int64_t part) {
        Scratch scratch(ForwardTile::size(call));
        ForwardTile forward(scratch, call, sequence, tile);
        float* own = saved.get() + number * parts * size;
        const int64_t blocks = (tile.last + TILE_KEYS - 1) / TILE_KEYS - tile.first / TILE_KEYS;
        const auto begin = [&](int64_t part) {
            return clamp((tile.first / TILE_KEYS + part * blocks / parts) * TILE_KEYS, tile.first, tile.last);
        };
        forward.meet(KeyRanges(begin(part), begin(part + 1)));
        forward.save(own + part * size);
        if (unfinished[number].fetch_sub(1) > 1) return;
        Scratch room(ForwardTile::size(call));
        ForwardTile whole(room, call, sequence, tile);
        for (int64_t i = 0; i < parts; ++i) whole.add(own + i * size);
        whole.put(results);
    });
}

}  // namespace ISA
