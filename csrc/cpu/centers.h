// Gaussians around learned centres (local-p, Luong et al. 2015), as backends/gaussian.py has them.
#pragma once
#include "row_tile.h"

namespace ISA {

constexpr float FARTHEST_SIGMAS = 1e15f;  // its square is finite

// What a tile's exponents are made of.
struct Gaussians {
    Centers::Gaussian kind;
    alignas(ALIGNMENT) float nearest[TILE_ROWS], mirror[TILE_ROWS], per_sigma[TILE_ROWS];

    Gaussians(const Call& call, const Sequence& sequence, const RowTile& tile) : kind(call.centers.gaussian) {
        if (!kind) return;
        for (int i = 0; i < tile.width; ++i) {
            const bool used = i < tile.count;
            const int64_t place = used ? row_place(call, sequence, tile.head[i], tile.row[i]) : 0;
            nearest[i] = used ? finite(call.centers.nearest[place]) : 0;
            mirror[i] = used ? finite(call.centers.mirror[place]) : 0;
            per_sigma[i] = used ? call.centers.per_sigma[place] : 0;
        }
    }
    // Sigmas from the nearest key, and the product with those from its mirror: -2 times the exponent.
    INLINE Floats distance(int64_t key, int lane) const { return sigmas(key, nearest, lane); }
    INLINE Floats square(int64_t key, int lane) const { return distance(key, lane) * sigmas(key, mirror, lane); }

    // Adds the exponents of the keys [begin, end) to their scores, if they belong inside of the softmax.
    void add_inside(float* scores, int64_t begin, int64_t end, int width) const {
        if (kind != Centers::INSIDE) return;
        for (int64_t j = begin; j < end; ++j)
            for (int i = 0; i < width; i += LANES) {
                float* score = scores + (j - begin) * width + i;
                store(score, load(score) - 0.5f * square(j, i));
            }
    }
    // Multiplies weights, if they belong after it.
    void multiply_after(float* weights, int64_t begin, int64_t end, int width) const {
        if (kind != Centers::AFTER) return;
        for (int64_t j = begin; j < end; ++j)
            for (int i = 0; i < width; i += LANES) {
                float* weight = weights + (j - begin) * width + i;
                store(weight, load(weight) * exp(-0.5f * square(j, i)));
            }
    }

  private:
    // Around a centre that is NaN no key is in sight, and no weight of 0 becomes NaN.
    static float finite(float center) { return center == center ? center : 0; }

    INLINE Floats sigmas(int64_t key, const float* from, int lane) const {
        const Floats found = (static_cast<float>(key) - load(from + lane)) * load(per_sigma + lane);
        return min(splat(FARTHEST_SIGMAS), max(splat(-FARTHEST_SIGMAS), found));
    }
};

}  // namespace ISA
