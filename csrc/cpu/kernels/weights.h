// Attention weights after dropout, given the rows' lse; or their mean over the heads.
#pragma once
#include "../given_lse.h"

namespace ISA {

inline void weights_tile(const Call& call, const Weights& results, const Sequence& sequence, const RowTile& tile) {
    const int64_t dim = call.head_dim;
    const int width = tile.width;
    Scratch scratch(TileRows::size(dim) + KeyTiles::size(dim) + MaskTile::SIZE +
                    2 * TILE_KEYS * TILE_ROWS * sizeof(float));
    TileRows query(scratch, dim);
    const KeyTiles keys(scratch, call.key, dim);
    MaskTile mask(scratch, call.mask);
    float *weights = scratch.take(TILE_KEYS * TILE_ROWS), *turned = scratch.take(TILE_KEYS * TILE_ROWS);
    query.fetch(tile, sequence, call.query, dim);
    const Gaussians gaussians(call, sequence, tile);
    const TileScores scores = {call, sequence, tile, query, keys, mask, gaussians};
    const RowBases bases = row_bases(results.lse, scores, weights, tile.last - tile.first <= TILE_KEYS);
    const Factors factors(call, tile, gaussians);
    Strided key;
    for (const KeyRange range : KeyRanges(tile.first, tile.last)) {
        if (!scores.find(range, 0, weights, nullptr, key)) continue;
        bases.weigh(weights, range.count(), width);
        factors.multiply(weights, range.begin, range.end);
        transpose(turned, TILE_KEYS, weights, width, TILE_KEYS, width);
        const Tensor& to = results.weights;
        for (int i = 0; i < tile.count; ++i) {
            char* place = to.at(tile.batch, tile.head[i], tile.row[i]) + range.begin * to.strides[3] * bytes(to.number);
            float* row = turned + i * TILE_KEYS;
            if (results.mean)
                for (int j = 0; j < range.count(); ++j)
                    reinterpret_cast<float*>(place)[j * to.strides[3]] += row[j] / call.heads;
            else
                narrow(place, row, to.strides[3], range.count(), to.number);
        }
    }
}

// Of a mean, the rows of all heads have their turns one after another.
inline void weights(const Call& call, const Weights& results) {
    const auto run = [&](const Sequence& sequence, const RowTile& tile) {
        weights_tile(call, results, sequence, tile);
    };
    if (results.mean)
        for_each_row(call, run);
    else
        for_each_tile(call, run);
}

}  // namespace ISA
