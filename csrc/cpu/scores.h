// What becomes of products on their way to scores: soft cap, mask, window, Gaussian.
#pragma once
#include "centers.h"
#include "mask_tile.h"

namespace ISA {

// In place: `scores[j * tile.width + lane]` of the keys [begin, end). slope: of the soft cap, at each; or null.
inline void finish_scores(const Call& call, const RowTile& tile, const MaskTile& mask, const Gaussians& gaussians,
                          int64_t begin, int64_t end, float* scores, float* slope) {
    const int width = tile.width, count = static_cast<int>(end - begin);
    if (call.softcap > 0)
        for (int at = 0; at < count * width; at += LANES) {
            const Floats capped = tanh(load(scores + at) * (1 / call.softcap));
            if (slope) store(slope + at, 1.0f - capped * capped);
            store(scores + at, capped * call.softcap);
        }
    if (mask)
        for (int j = 0; j < count; ++j)
            for (int i = 0; i < width; i += LANES) {
                const Floats bias = mask.bias(j, i);
                float* score = scores + j * width + i;
                store(score, bias == -INFINITY ? bias : load(score) + bias);
            }
    if (!tile.sees_all(begin, end))
        for (int j = 0; j < count; ++j) {
            const int32_t key = static_cast<int32_t>(begin + j);
            if (tile.sees_all(key, key + 1)) continue;
            for (int i = 0; i < width; i += LANES) {
                float* score = scores + j * width + i;
                store(score, tile.sees(key, i) ? load(score) : splat(-INFINITY));
            }
        }
    gaussians.add_inside(scores, begin, end, width);
}

// An infinite score counts as the largest number. top: at least the lanes' highest scores; in place.
inline void bound(float* scores, int count, int width, float* top) {
    Ints infinite = {};
    for (int i = 0; i < width; i += LANES) infinite |= load(top + i) == INFINITY;
    if (!any(infinite)) return;
    for (int at = 0; at < count * width; at += LANES) store(scores + at, min(splat(LARGEST), load(scores + at)));
    for (int i = 0; i < width; i += LANES) store(top + i, min(splat(LARGEST), load(top + i)));
}

}  // namespace ISA
