// Exact samples from the softmax of each row, or its highest score; with them the row's lse and entropy. The values are
// gathered at the draws: there is no product with them.
#pragma once
#include "../sampler.h"
#include "../tile_scores.h"

namespace ISA {

inline void sample_tile(const Call& call, const Samples& results, const Sequence& sequence, const RowTile& tile) {
    const int64_t dim = call.head_dim;
    Scratch scratch(TileRows::size(dim) + KeyTiles::size(dim) + MaskTile::SIZE + Sampler::size(results.count) +
                    2 * TILE_KEYS * TILE_ROWS * sizeof(float));
    TileRows query(scratch, dim);
    const KeyTiles keys(scratch, call.key, dim);
    MaskTile mask(scratch, call.mask);
    float *room = scratch.take(TILE_KEYS * TILE_ROWS), *mass = scratch.take(TILE_KEYS * TILE_ROWS);
    const Gaussians gaussians(call, sequence, tile);
    Sampler sampler(scratch, call, tile, results.count);
    query.fetch(tile, sequence, call.query, dim);
    const TileScores scores = {call, sequence, tile, query, keys, mask, gaussians};
    Strided key;
    for (const KeyRange range : KeyRanges(tile.first, tile.last, SAMPLE_BLOCK))
        if (scores.find(range, 0, room, nullptr, key)) sampler.step(room, mass, range.begin, range.count());
    for (int i = 0; i < tile.count; ++i) {
        const int64_t place = row_place(call, sequence, tile.head[i], tile.row[i]);
        results.lse[place] = sampler.online.lse(i);
        results.entropy[place] = sampler.entropy(i);
        for (int64_t draw = 0; draw < results.count; ++draw) {
            const int64_t index = sampler.index[draw * TILE_ROWS + i];
            results.index[draw * batch_rows(call) + place] = index;
            results.score[draw * batch_rows(call) + place] = index < 0 ? 0 : sampler.score[draw * TILE_ROWS + i];
            gather(call, results, sequence, tile, i, draw, index);
        }
    }
}

inline void sample(const Call& call, const Samples& results) {
    for_each_tile(call,
                  [&](const Sequence& sequence, const RowTile& tile) { sample_tile(call, results, sequence, tile); });
}

}  // namespace ISA
