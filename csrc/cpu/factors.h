// What multiplies weights after the softmax: dropout, and a Gaussian.
#pragma once
#include "centers.h"
#include "philox.h"

namespace ISA {

// The lanes' counters of random numbers.
struct Counters {
    alignas(ALIGNMENT) uint32_t row[TILE_ROWS], batch_head[TILE_ROWS];

    Counters(const Call& call, const RowTile& tile) {
        for (int i = 0; i < tile.width; ++i) {
            row[i] = i < tile.count ? tile.row[i] : 0;
            batch_head[i] = i < tile.count ? tile.batch * call.heads + tile.head[i] : 0;
        }
    }
    INLINE FourWords words(int64_t seed, int lane, uint32_t stream, uint32_t block) const {
        return philox(seed, load_as<Words>(row + lane), load_as<Words>(batch_head + lane), stream, block);
    }
};

class Factors {
  public:
    Factors(const Call& call, const RowTile& tile, const Gaussians& gaussians)
        : call(call), tile(tile), gaussians(gaussians), counters(call, tile) {}

    // Multiplies the weights of the keys [begin, end).
    void multiply(float* weights, int64_t begin, int64_t end) const {
        gaussians.multiply_after(weights, begin, end, tile.width);
        if (call.dropout.threshold) drop(weights, begin, end);
    }

  private:
    const Call& call;
    const RowTile& tile;
    const Gaussians& gaussians;
    Counters counters;

    void drop(float* weights, int64_t begin, int64_t end) const {
        for (int i = 0; i < tile.width; i += LANES)
            for (int64_t block = begin / 4; block * 4 < end; ++block) {
                const FourWords words = counters.words(call.seed, i, DROPOUT_STREAM, static_cast<uint32_t>(block));
                for (int64_t key = block * 4; key < block * 4 + 4; ++key) {
                    if (key < begin || key >= end) continue;
                    float* weight = weights + (key - begin) * tile.width + i;
                    const Words top = words.word[key % 4] >> 8;
                    store(weight, top >= call.dropout.threshold ? load(weight) * call.dropout.scale : Floats{});
                }
            }
    }
};

}  // namespace ISA
