// The online softmax (Milakov & Gimelshein 2018, arXiv 1805.02867) of a tile's rows, one to a lane.
#pragma once
#include "lanes.h"
#include "scores.h"

namespace ISA {

constexpr float FAR = -1e4f;  // its exponential is 0, and 0 * FAR is not NaN

// The highest of `count` scores in each lane, and of what stands in `top`; infinite ones become finite.
inline void raise(float* top, float* scores, int count, int width) {
    by_lanes(width, [&](auto V, int lane) {
        Floats highest[V];
        for (int v = 0; v < V; ++v) highest[v] = load(top + lane + v * LANES);
        for (int j = 0; j < count; ++j)
            for (int v = 0; v < V; ++v)
                highest[v] = max(load(scores + j * width + lane + v * LANES), highest[v]);  // passes over NaN
        for (int v = 0; v < V; ++v) store(top + lane + v * LANES, highest[v]);
    });
    bound(scores, count, width, top);
}

struct OnlineSoftmax {
    // The highest score so far (finite, so that differences are), the sum of exponentials relative to it, and what
    // earlier sums are to be multiplied by since the last step.
    alignas(ALIGNMENT) float top[TILE_ROWS], total[TILE_ROWS], decay[TILE_ROWS];

    OnlineSoftmax() {
        for (int i = 0; i < TILE_ROWS; ++i) top[i] = -LARGEST, total[i] = 0;
    }

    // Takes a tile of scores, and leaves exponentials in their place.
    void step(float* scores, int count, int width) { add(scores, count, width, scores); }

    // Takes a tile of scores, and leaves them as they are.
    void meet(float* scores, int count, int width) { add(scores, count, width, nullptr); }

    float lse(int lane) const { return total[lane] == 0 ? -INFINITY : top[lane] + std::log(total[lane]); }

  private:
    INLINE void add(float* scores, int count, int width, float* exponentials) {
        alignas(ALIGNMENT) float before[TILE_ROWS];
        std::memcpy(before, top, sizeof top);
        raise(top, scores, count, width);
        by_lanes(width, [&](auto V, int lane) {
            Floats sums[V], highest[V];
            for (int v = 0; v < V; ++v) sums[v] = Floats{}, highest[v] = load(top + lane + v * LANES);
            for (int j = 0; j < count; ++j)
                for (int v = 0; v < V; ++v) {
                    const int at = j * width + lane + v * LANES;
                    const Floats weight = exp(load(scores + at) - highest[v]);
                    sums[v] += weight;
                    if (exponentials) store(exponentials + at, weight);
                }
            for (int v = 0; v < V; ++v) {
                const int i = lane + v * LANES;
                const Floats shrink = exp(load(before + i) - highest[v]);
                store(decay + i, shrink);
                store(total + i, load(total + i) * shrink + sums[v]);
            }
        });
    }
};

}  // namespace ISA
