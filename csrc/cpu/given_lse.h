// Softmax weights of scores that are made again: exp(s - base) / total.
#pragma once
#include "factors.h"
#include "online_softmax.h"
#include "tile_scores.h"

namespace ISA {

// What the weights of each row are relative to.
struct RowBases {
    alignas(ALIGNMENT) float base[TILE_ROWS], inverse[TILE_ROWS], log_total[TILE_ROWS];

    // As the rows' lse says. That is rounded: where it is large the weights do not add up to 1, and false comes back.
    bool take(const float* lse, const Call& call, const Sequence& sequence, const RowTile& tile) {
        constexpr float LARGE = 16;  // float32 rounds it by 1e-6
        bool exact = true;
        for (int i = 0; i < tile.width; ++i) {
            base[i] = i < tile.count ? lse[row_place(call, sequence, tile.head[i], tile.row[i])] : 0;
            if (base[i] == -INFINITY) base[i] = 0;  // an empty row's scores are all -inf
            inverse[i] = 1, log_total[i] = 0;
            exact &= std::fabs(base[i]) <= LARGE;
        }
        return exact;
    }
    void take(const OnlineSoftmax& online, int width) {
        for (int i = 0; i < width; ++i) {
            const bool empty = online.total[i] == 0;
            base[i] = online.top[i], inverse[i] = empty ? 0 : 1 / online.total[i];
            log_total[i] = empty ? 0 : std::log(online.total[i]);
        }
    }
    // Leaves weights in the place of `count` keys' scores.
    void weigh(float* scores, int count, int width) const {
        by_lanes(width, [&](auto V, int lane) {
            Floats bases[V], factors[V];
            for (int v = 0; v < V; ++v)
                bases[v] = load(base + lane + v * LANES), factors[v] = load(inverse + lane + v * LANES);
            for (int j = 0; j < count; ++j)
                for (int v = 0; v < V; ++v) {
                    float* score = scores + j * width + lane + v * LANES;
                    store(score, exp(min(splat(LARGEST), load(score)) - bases[v]) * factors[v]);
                }
        });
    }
    // The weights' logarithms, of scores that are not weights yet.
    void logarithms(const float* scores, float* found, int count, int width) const {
        for (int at = 0; at < count * width; at += LANES) {
            const int i = at % width;
            const Floats distance = min(splat(LARGEST), load(scores + at)) - load(base + i);
            store(found + at, max(splat(FAR), distance - load(log_total + i)));
        }
    }
};

// As the lse says, unless that is not exact or `again` says so: then found again with a pass over the keys. room: for a
// tile of scores.
inline RowBases row_bases(const float* lse, const TileScores& scores, float* room, bool again = false) {
    RowBases bases;
    if (bases.take(lse, scores.call, scores.sequence, scores.tile) && !again) return bases;
    OnlineSoftmax online;
    Strided key;
    for (const KeyRange range : KeyRanges(scores.tile.first, scores.tile.last))
        if (scores.find(range, 0, room, nullptr, key)) online.step(room, range.count(), scores.tile.width);
    bases.take(online, scores.tile.width);
    return bases;
}

}  // namespace ISA
