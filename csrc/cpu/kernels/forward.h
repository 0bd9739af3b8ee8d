// Output and lse of softmax attention, or the output of weights that are linear, relu or exp of their scores.
#pragma once
#include "../activation.h"
#include "../factors.h"
#include "../online_softmax.h"

namespace ISA {

// One tile of queries.
inline void forward_tile(const Call& call, const ForwardResults& results, const Sequence& sequence,
                         const RowTile& tile) {
    const int64_t dim = call.head_dim, value_dim = call.value_dim;
    Scratch scratch(TileRows::size(dim) + TileRows::size(value_dim) + KeyTiles::size(dim) + KeyTiles::size(value_dim) +
                    MaskTile::SIZE + TILE_KEYS * TILE_ROWS * sizeof(float));
    TileRows query(scratch, dim), output(scratch, value_dim);
    const KeyTiles keys(scratch, call.key, dim), values(scratch, call.value, value_dim);
    MaskTile mask(scratch, call.mask);
    float* scores = scratch.take(TILE_KEYS * TILE_ROWS);

    const bool softmax = call.softmax();
    const int width = tile.width;
    const Gaussians gaussians(call, sequence, tile);
    const Factors factors(call, tile, gaussians);
    OnlineSoftmax online;
    query.fetch(tile, sequence, call.query, dim);
    std::memset(output.lanes, 0, width * output.padded * sizeof(float));
    for (const KeyRange range : KeyRanges(tile.first, tile.last)) {
        if (!mask.fetch(tile, range.begin, range.end)) continue;
        const int count = range.count();
        const Strided key = keys.fetch(sequence, tile.kv_head, range.begin, range.end, mask.seen());
        product(key, {query.lanes, width}, {scores, width}, count, width, dim, Scaled{call.scale});
        finish_scores(call, tile, mask, gaussians, range.begin, range.end, scores, nullptr);
        if (softmax)
            online.step(scores, count, width);
        else
            activate(call.selector, scores, count, width);
        factors.multiply(scores, range.begin, range.end);
        const Strided value = values.fetch(sequence, tile.kv_head, range.begin, range.end, mask.seen()).transposed();
        const Rows sums = {output.lanes, width};
        if (softmax)
            product(value, {scores, width}, sums, value_dim, width, count, AddedToScaled{online.decay});
        else
            product(value, {scores, width}, sums, value_dim, width, count, Added{});
    }
    alignas(ALIGNMENT) float inverse[TILE_ROWS];
    for (int i = 0; i < width; ++i) inverse[i] = !softmax || online.total[i] == 0 ? 1 : 1 / online.total[i];
    output.put(tile, sequence, results.output, value_dim, inverse);
    if (results.lse)
        for (int i = 0; i < tile.count; ++i)
            results.lse[row_place(call, sequence, tile.head[i], tile.row[i])] = online.lse(i);
}

inline void forward(const Call& call, const ForwardResults& results) {
    for_each_tile(call, [&](const Sequence& sequence, const RowTile& tile) {
        forward_tile(call, results, sequence, tile);
    });
}

}  // namespace ISA
