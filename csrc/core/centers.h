// Where queries look, and how much, around learned centres (local-p, Luong et al. 2015). Queries come in the order of
// their centres, so that the windows of neighbours lie close together; the host finds the tiles that meet.
#pragma once
#include "core/online_softmax.h"
#include "core/prior.h"
#include "core/tile.h"
#include <ptx/memory.h>
#include <ptx/number.h>
#include <ptx/shuffle.h>

namespace core {

// Of one query: the keys [begin, end) that it may look at, and its Gaussian as backends/gaussian.py has it, with the
// reciprocal of sigma, which is finite.
struct alignas(32) Center {
    int begin, end;
    float nearest, mirror, per_sigma;
    int unused[3];
};

// Filled on the host; rows and gradients are those of (batch, heads, len_q).
struct Centers {
    enum Gaussian { NONE, AFTER, INSIDE };  // the softmax
    Gaussian gaussian;
    const Center* rows;
    const Range* blocks;              // of (batch, heads, tiles): the blocks that a tile meets, one at least
    float *grad_center, *grad_sigma;  // times sigma; sums, zero at the start
};

constexpr float FARTHEST_SIGMAS = 1e15f;  // its square is finite

// The queries of one head.
struct Around {
    const Centers& centers;
    int64_t first;  // of the head's rows
    int len_q;

    DEVICE Around(const Centers& centers, int head, int len_q)
        : centers(centers), first(static_cast<int64_t>(head) * len_q), len_q(len_q) {}

    // Past the end nothing is in sight.
    DEVICE Center of(int row) const {
        return row < len_q ? ptx::load_global(centers.rows + first + row) : Center{0, 0, 0, 0, 0, {}};
    }
    DEVICE Range sight_of(int row) const {
        const Center center = of(row);
        return {center.begin, center.end};
    }

    static DEVICE float in_sigmas(float distance, float per_sigma) {
        return fminf(fmaxf(distance * per_sigma, -FARTHEST_SIGMAS), FARTHEST_SIGMAS);
    }
    // From the nearest key.
    static DEVICE float distance(const Center& center, int key) {
        return in_sigmas(static_cast<float>(key) - center.nearest, center.per_sigma);
    }
    // What the exponent is -0.5 of.
    DEVICE float square(const Center& center, int key) const {
        const float near = distance(center, key);
        return near * (inside() ? in_sigmas(static_cast<float>(key) - center.mirror, center.per_sigma) : near);
    }

    DEVICE bool inside() const { return centers.gaussian == Centers::INSIDE; }
    DEVICE bool after() const { return centers.gaussian == Centers::AFTER; }
    // What a score changes by, and what a weight is multiplied with.
    DEVICE float bias(const Center& center, int key) const { return -0.5f * square(center, key); }
    DEVICE float factor(const Center& center, int key) const {
        return ptx::exp2_approximate(bias(center, key) * LOG2E);
    }

    // A warpgroup's accumulators whose rows are queries, the lane's first at `row`, its first column at `key`: calls
    // function(i, center, key) for each.
    template <int Count, class Function>
    DEVICE void for_each_by_query(float (&)[Count], int row, int key, Function function) const {
        const Center own[2] = {of(row), of(row + 8)};
        UNROLL
        for (int i = 0; i < Count; ++i) function(i, own[i / 2 % 2], key + i / 4 * 8 + i % 2);
    }

    // The same where rows are keys and columns queries.
    template <int Count, class Function>
    DEVICE void for_each_by_key(float (&)[Count], int row, int key, Function function) const {
        for_each_column<Count>(row, [&](int i, int, const Center& center) {
            function(i, center, key);
            function(i + 2, center, key + 8);
        });
    }

    // Adds to the gradients of centre and sigma what gradient(i), that of an exponent, makes of them.
    template <int Count, class Function>
    DEVICE void add_gradients(float (&)[Count], int row, int key, Function gradient) const {
        for_each_column<Count>(row, [&](int i, int query, const Center& center) {
            float of_center = 0, of_sigma = 0;
            UNROLL
            for (int half = 0; half < 2; ++half) {
                const float own = gradient(i + 2 * half);
                of_center = fmaf(own, distance(center, key + 8 * half), of_center);
                of_sigma = fmaf(own, square(center, key + 8 * half), of_sigma);
            }
            UNROLL
            for (int mask = 4; mask < 32; mask *= 2) {  // the lanes that hold other keys of the same query
                of_center += ptx::shuffle_xor(of_center, mask);
                of_sigma += ptx::shuffle_xor(of_sigma, mask);
            }
            if (ptx::lane_index() < 4 && query < len_q) {
                ptx::add_global(centers.grad_center + first + query, of_center);
                ptx::add_global(centers.grad_sigma + first + query, of_sigma);
            }
        });
    }

  private:
    // function(i, query, center) for each column: register i is its first key's, i + 2 its second one's.
    template <int Count, class Function>
    DEVICE void for_each_column(int row, Function function) const {
        UNROLL
        for (int i = 0; i < Count; i += 4) {
            UNROLL
            for (int column = 0; column < 2; ++column)
                function(i + column, row + i * 2 + column, of(row + i * 2 + column));
        }
    }
};

}  // namespace core
