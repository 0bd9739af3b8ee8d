// The scores of one tile of queries, tile of keys by tile of keys.
#pragma once
#include "pairs.h"
#include "scores.h"

namespace ISA {

// Keys and queries as pairs, instead.
struct ScorePairOperands {
    const KeyPairs& keys;
    Rows queries;
};

struct TileScores {
    const Call& call;
    const Sequence& sequence;
    const RowTile& tile;
    const TileRows& query;
    const KeyTiles& keys;
    MaskTile& mask;
    const Gaussians& gaussians;
    const ScorePairOperands* pairs = nullptr;

    // The scores of the keys in the range, and these keys, in `slot`; false if no row may look at any. slope: of the soft
    // cap, or null. In pairs, the keys stay as they are.
    bool find(KeyRange range, int slot, float* scores, float* slope, Strided& key) const {
        if (!mask.fetch(tile, range.begin, range.end)) return false;
        const Rows to = {scores, tile.width};
        if (pairs) {
            product_of_pairs(pairs->keys.rows(sequence, tile.kv_head, range, mask.seen()), pairs->queries, to,
                             range.count(), tile.width, KeyPairs::depth(call.head_dim), Scaled{call.scale});
        } else {
            key = keys.fetch(sequence, tile.kv_head, range.begin, range.end, mask.seen(), slot);
            product(key, {query.lanes, tile.width}, to, range.count(), tile.width, call.head_dim, Scaled{call.scale});
        }
        finish_scores(call, tile, mask, gaussians, range.begin, range.end, scores, slope);
        return true;
    }
};

}  // namespace ISA
