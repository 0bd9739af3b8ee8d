// The scores of one tile of queries, tile of keys by tile of keys.
#pragma once
#include "scores.h"

namespace ISA {

struct TileScores {
    const Call& call;
    const Sequence& sequence;
    const RowTile& tile;
    const TileRows& query;
    const KeyTiles& keys;
    MaskTile& mask;
    const Gaussians& gaussians;

    // The scores of the keys in the range, and these keys, in `slot`; false if no row may look at any. slope: of the soft
    // cap, or null.
    bool find(KeyRange range, int slot, float* scores, float* slope, Strided& key) const {
        if (!mask.fetch(tile, range.begin, range.end)) return false;
        key = keys.fetch(sequence, tile.kv_head, range.begin, range.end, mask.seen(), slot);
        product(key, {query.lanes, tile.width}, {scores, tile.width}, range.count(), tile.width, call.head_dim,
                Scaled{call.scale});
        finish_scores(call, tile, mask, gaussians, range.begin, range.end, scores, slope);
        return true;
    }
};

}  // namespace ISA
