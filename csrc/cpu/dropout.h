// Dropout of weights: which are kept, and by what.
#pragma once
#include "philox.h"
#include "row_tile.h"

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

// Multiplies by what dropout does to the weights of the keys [begin, end): 0, or its scale.
inline void drop(const Call& call, const RowTile& tile, const Counters& counters, int64_t begin, int64_t end,
                 float* weights) {
    if (!call.dropout.threshold) return;
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

}  // namespace ISA
