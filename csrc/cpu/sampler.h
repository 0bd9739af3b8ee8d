// Draws from the softmax of rows whose scores come in blocks of 64 keys, one uniform number per block and draw: with `b`
// the mass of a block and `l` the sum so far, this block included, a draw moves to the block if u l < b, to the first key
// at which the block's running sum exceeds u l.
#pragma once
#include "factors.h"
#include "online_softmax.h"

namespace ISA {

struct Sampler {
    OnlineSoftmax online;
    alignas(ALIGNMENT) float surprise[TILE_ROWS] = {};  // sum of e^(s - top) (s - top)
    int32_t* index;                                     // (draws, TILE_ROWS)
    float* score;                                       // likewise

    static size_t size(int64_t draws) { return 2 * Scratch::rounded(draws * TILE_ROWS * sizeof(float)); }

    Sampler(Scratch& scratch, const Call& call, const RowTile& tile, int64_t draws)
        : call(call), tile(tile), draws(draws), counters(call, tile) {
        index = scratch.take<int32_t>(draws * TILE_ROWS), score = scratch.take(draws * TILE_ROWS);
        for (int64_t i = 0; i < draws * TILE_ROWS; ++i) index[i] = -1, score[i] = 0;
    }

    // Takes the scores of keys of one block; mass: room for as many numbers.
    void step(float* scores, float* mass, int64_t begin, int count) {
        alignas(ALIGNMENT) float before[TILE_ROWS], block[TILE_ROWS];
        const int width = tile.width;
        std::memcpy(before, online.top, sizeof before);
        raise(online.top, scores, count, width);
        by_lanes(width, [&](auto V, int lane) {
            Floats sums[V], surprises[V], top[V];
            for (int v = 0; v < V; ++v) {
                sums[v] = surprises[v] = Floats{}, top[v] = load(online.top + lane + v * LANES);
            }
            for (int j = 0; j < count; ++j)
                for (int v = 0; v < V; ++v) {
                    const int at = j * width + lane + v * LANES;
                    const Floats distance = max(splat(FAR), load(scores + at) - top[v]), weight = exp(distance);
                    sums[v] += weight;
                    surprises[v] += weight * distance;
                    store(mass + at, weight);
                }
            for (int v = 0; v < V; ++v) {
                const int i = lane + v * LANES;
                const Floats drop = max(splat(FAR), load(before + i) - top[v]), shrink = exp(drop);
                const Floats total = load(online.total + i);
                store(surprise + i, shrink * (load(surprise + i) + drop * total) + surprises[v]);
                store(online.total + i, total * shrink + sums[v]);
                store(block + i, sums[v]);
            }
        });
        for (int lane = 0; lane < width; lane += LANES) {
            if (call.selector == Selector::argmax)
                take_highest(scores, before, begin, count, lane);
            else
                for (int64_t draw = 0; draw < draws; draw += 4)
                    take_sampled(scores, mass, block, begin, count, lane, draw);
        }
    }
    float entropy(int lane) const {
        const float total = online.total[lane];
        return total == 0 ? 0 : std::log(total) - surprise[lane] / total;
    }

  private:
    const Call& call;
    const RowTile& tile;
    int64_t draws;
    Counters counters;

    void take_highest(const float* scores, const float* before, int64_t begin, int count, int lane) {
        const Ints none = load(index + lane) < 0;
        Floats best = none ? splat(-INFINITY) : load(before + lane);
        Ints found = load(index + lane);
        for (int j = 0; j < count; ++j) {
            const Floats one = load(scores + j * tile.width + lane);
            const Ints higher = one > best;
            best = higher ? one : best;
            found = higher ? splat(static_cast<int32_t>(begin + j)) : found;
        }
        store(index + lane, found);
        store(score + lane, best);
    }

    // Up to four draws: they share the words of one counter.
    void take_sampled(const float* scores, const float* mass, const float* block, int64_t begin, int count, int lane,
                      int64_t draw) {
        const FourWords words = counters.words(call.seed, lane, SAMPLE_STREAM + static_cast<uint32_t>(draw / 4),
                                               static_cast<uint32_t>(begin / SAMPLE_BLOCK));
        const Floats own = load(block + lane), total = load(online.total + lane);
        for (int64_t d = draw; d < draw + 4 && d < draws; ++d) {
            int32_t* places = index + d * TILE_ROWS + lane;
            const Floats target = uniform(words.word[d - draw]) * total;
            // the first block with any mass is always taken; rounding must not lose it
            const Ints taken = (own > 0.0f) & ((target < own) | (load(places) < 0));
            if (any(taken))
                search(scores, mass, begin, count, lane, target, taken, places, score + d * TILE_ROWS + lane);
        }
    }
    void search(const float* scores, const float* mass, int64_t begin, int count, int lane, Floats target, Ints taken,
                int32_t* places, float* found) {
        Floats sum = {};
        Ints reached = {}, last = {};
        for (int j = 0; j < count; ++j) {
            const Floats one = load(mass + j * tile.width + lane);
            sum += one;
            reached -= sum <= target;  // a comparison that holds is -1
            last = one > 0.0f ? splat(j) : last;
        }
        reached = reached < last ? reached : last;
        for (int i = 0; i < LANES; ++i)
            if (taken[i]) {
                places[i] = static_cast<int32_t>(begin) + reached[i];
                found[i] = scores[reached[i] * tile.width + lane + i];
            }
    }
};

// The value that a row drew, or 0.
inline void gather(const Call& call, const Samples& results, const Sequence& sequence, const RowTile& tile, int lane,
                   int64_t draw, int64_t index) {
    const int64_t size = bytes(call.value.number);
    char* to = results.output.at(sequence.stored, tile.head[lane], sequence.first_row + tile.row[lane]) +
               draw * results.output_stride * size;
    const char* from = index < 0 ? nullptr : call.value.at(sequence.stored, tile.kv_head, sequence.first_key + index);
    for (int64_t c = 0; c < call.value_dim; ++c) {
        char* place = to + c * results.output.strides[3] * size;
        if (from)
            std::memcpy(place, from + c * call.value.strides[3] * size, size);
        else
            std::memset(place, 0, size);
    }
}

}  // namespace ISA
