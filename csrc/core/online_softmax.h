// Softmax over keys that come in blocks (Milakov and Gimelshein 2018): the running maximum and sum of a lane's
// two rows of a warpgroup's accumulators.
#pragma once
#include <cmath>

#include "ptx/number.h"
#include "ptx/shuffle.h"

namespace core {

constexpr float LN2 = 0.693147180559945309f, LOG2E = 1.44269504088896341f;

struct OnlineSoftmax {
    float unit;                                     // scores times this are in units of log2
    float maximum[2] = {-INFINITY, -INFINITY};      // of the scores as they come
    float sum[2] = {0, 0};                          // over this lane's columns only

    // Turns scores into weights relative to the new maximum; `shrink` is what older weights shrink by.
    template <int Count>
    DEVICE void update(float (&scores)[Count], float (&shrink)[2]) {
        float top[2] = {maximum[0], maximum[1]};
        UNROLL
        for (int i = 0; i < Count; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], scores[i]);
        float shift[2];
        UNROLL
        for (int row = 0; row < 2; ++row) {
            top[row] = fmaxf(top[row], ptx::shuffle_xor(top[row], 1));
            top[row] = fmaxf(top[row], ptx::shuffle_xor(top[row], 2));
            shift[row] = top[row] == -INFINITY ? 0.0f : top[row] * unit;  // a row that has seen no key yet
            shrink[row] = ptx::exp2_approximate(maximum[row] * unit - shift[row]);
            maximum[row] = top[row];
        }
        float partial[2] = {0, 0};
        UNROLL
        for (int i = 0; i < Count; ++i) {
            const int row = i / 2 % 2;
            scores[i] = ptx::exp2_approximate(fmaf(scores[i], unit, -shift[row]));
            partial[row] += scores[i];
        }
        UNROLL
        for (int row = 0; row < 2; ++row) sum[row] = sum[row] * shrink[row] + partial[row];
    }

    // After the last block: what to multiply the accumulated values by, and the natural log-sum-exp.
    DEVICE void finish(float (&scale)[2], float (&lse)[2]) {
        UNROLL
        for (int row = 0; row < 2; ++row) {
            float total = sum[row];
            total += ptx::shuffle_xor(total, 1);
            total += ptx::shuffle_xor(total, 2);
            scale[row] = total > 0 ? 1 / total : 0.0f;
            lse[row] = total > 0 ? (maximum[row] * unit + ptx::log2_approximate(total)) * LN2 : -INFINITY;
        }
    }
};

// Multiplies the lane's two rows.
template <int Count>
DEVICE void scale_rows(float (&values)[Count], const float (&factor)[2]) {
    UNROLL
    for (int i = 0; i < Count; ++i) values[i] *= factor[i / 2 % 2];
}

}  // namespace core
