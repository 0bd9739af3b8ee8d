// Gaussians around learned centres (local-p, Luong et al. 2015), as backends/gaussian.py has them.
#pragma once
#include <limits>

#include "row_tile.h"

namespace ISA {

constexpr float FARTHEST_SIGMAS = 1e15f;  // its square is finite

// What a tile's exponents are made of: `-0.5 (j - nearest) (j - mirror) / sigma^2`, where both are the centre after a
// softmax. Inside of one they are relative to that of the nearest key in sight, and its mirror is the centre's other side.
struct Gaussians {
    enum Place { NONE, AFTER, INSIDE } place;  // the softmax
    alignas(ALIGNMENT) float nearest[TILE_ROWS], mirror[TILE_ROWS], per_sigma[TILE_ROWS];

    Gaussians(const Call& call, const Sequence& sequence, const RowTile& tile)
        : place(!call.centers.sigma   ? NONE
                : call.centers.inside ? INSIDE
                                      : AFTER) {
        for (int i = 0; place && i < tile.width; ++i) {
            nearest[i] = mirror[i] = per_sigma[i] = 0;
            if (i < tile.count) place_row(i, call, sequence, tile.head[i], tile.row[i]);
        }
    }
    // Sigmas from the nearest key, and the product with those from its mirror: -2 times the exponent.
    INLINE Floats distance(int64_t key, int lane) const { return sigmas(key, nearest, lane); }
    INLINE Floats square(int64_t key, int lane) const { return distance(key, lane) * sigmas(key, mirror, lane); }

    // Adds the exponents of the keys [begin, end) to their scores, if they belong inside of the softmax.
    void add_inside(float* scores, int64_t begin, int64_t end, int width) const {
        if (place != INSIDE) return;
        for (int64_t j = begin; j < end; ++j)
            for (int i = 0; i < width; i += LANES) {
                float* score = scores + (j - begin) * width + i;
                store(score, load(score) - 0.5f * square(j, i));
            }
    }
    // Multiplies weights, if they belong after it.
    void multiply_after(float* weights, int64_t begin, int64_t end, int width) const {
        if (place != AFTER) return;
        for (int64_t j = begin; j < end; ++j)
            for (int i = 0; i < width; i += LANES) {
                float* weight = weights + (j - begin) * width + i;
                store(weight, load(weight) * exp(-0.5f * square(j, i)));
            }
    }

  private:
    void place_row(int i, const Call& call, const Sequence& sequence, int64_t head, int64_t row) {
        const int64_t at = row_place(call, sequence, head, row);
        const float center = finite(call.centers.center[at]), sigma = call.centers.sigma[at];
        nearest[i] = mirror[i] = center;
        per_sigma[i] = 1 / sigma > 1e30f ? 1e30f : 1 / sigma;  // NaN stays
        if (place != INSIDE) return;
        nearest[i] = nearest_key(call, sequence, center, row);
        const float over = center - nearest[i];
        const bool far = std::fabs(over) >= FARTHEST_SIGMAS * sigma;  // the definition has all keys equally far then
        mirror[i] = nearest[i] + (far ? 0 : 2 * over);
        if (far) per_sigma[i] = 0;
    }
    // Of those in sight but for a mask; any one where none is in sight.
    static float nearest_key(const Call& call, const Sequence& sequence, float center, int64_t row) {
        float key = std::nearbyint(center);
        const auto at_most = [&](float bound) { key = bound < key ? bound : key; };
        if (call.right >= 0) at_most(std::floor(center) + static_cast<float>(call.right));
        at_most(static_cast<float>(sequence.len_k - 1));
        if (call.causal) at_most(static_cast<float>(row + sequence.offset));
        return key > 0 ? key : 0;
    }
    // Around a centre that is NaN no key is in sight, and no weight of 0 becomes NaN.
    static float finite(float center) {
        const float largest = std::numeric_limits<float>::max();
        return center != center ? 0 : center > largest ? largest : center < -largest ? -largest : center;
    }

    INLINE Floats sigmas(int64_t key, const float* from, int lane) const {
        const Floats found = (static_cast<float>(key) - load(from + lane)) * load(per_sigma + lane);
        return min(splat(FARTHEST_SIGMAS), max(splat(-FARTHEST_SIGMAS), found));
    }
};

}  // namespace ISA
