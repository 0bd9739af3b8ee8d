// Softmax over keys that come in blocks (Milakov and Gimelshein 2018): the running maximum and sum of a lane's
// two rows of a warpgroup's accumulators.
#pragma once
#include <cmath>

#include <ptx/number.h>
#include <ptx/shuffle.h>

namespace core {

constexpr float SLACK = 8;  // units of log2 by which a maximum may lag behind
constexpr float LN2 = 0.693147180559945309f, LOG2E = 1.44269504088896341f;

// Infinite scores count as the largest that have finite units.
template <int Count>
DEVICE void clamp_infinite(float (&scores)[Count], float (&top)[2], float unit) {
    if (!ptx::any_lane(top[0] == INFINITY || top[1] == INFINITY)) return;
    const float largest = 3e38f / fmaxf(unit, 1.0f);
    UNROLL
    for (int i = 0; i < Count; ++i) scores[i] = fminf(scores[i], largest);
    UNROLL
    for (int row = 0; row < 2; ++row) top[row] = fminf(top[row], largest);
}

struct OnlineSoftmax {
    float unit;                                 // scores times this are in units of log2
    float maximum[2] = {-INFINITY, -INFINITY};  // of the scores as they come
    float sum[2] = {0, 0};                      // over this lane's columns only

    // Turns scores into weights relative to the maximum. While no row's maximum grows by more than SLACK units the
    // old one serves on; else it returns true, and `shrink` is what older weights shrink by.
    template <int Count>
    DEVICE bool update(float (&scores)[Count], float (&shrink)[2]) {
        float top[2] = {maximum[0], maximum[1]};
        UNROLL
        for (int i = 0; i < Count; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], scores[i]);
        UNROLL
        for (int row = 0; row < 2; ++row) {
            top[row] = fmaxf(top[row], ptx::shuffle_xor(top[row], 1));
            top[row] = fmaxf(top[row], ptx::shuffle_xor(top[row], 2));
        }
        const float bar[2] = {fmaf(maximum[0], unit, SLACK), fmaf(maximum[1], unit, SLACK)};
        const bool grown = ptx::any_lane(top[0] * unit > bar[0] || top[1] * unit > bar[1]);
        if (grown) {
            clamp_infinite(scores, top, unit);
            UNROLL
            for (int row = 0; row < 2; ++row) {
                shrink[row] = top[row] == -INFINITY ? 1.0f : ptx::exp2_approximate((maximum[row] - top[row]) * unit);
                sum[row] *= shrink[row];
                maximum[row] = top[row];
            }
        }
        const float shift[2] = {shift_of(0), shift_of(1)};
        UNROLL
        for (int i = 0; i < Count; ++i) {
            const int row = i / 2 % 2;
            scores[i] = ptx::exp2_approximate(fmaf(scores[i], unit, -shift[row]));
            sum[row] += scores[i];
        }
        return grown;
    }

    // A row that has seen no key yet has no maximum.
    DEVICE float shift_of(int row) const { return maximum[row] == -INFINITY ? 0.0f : maximum[row] * unit; }

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

// Multiplies the lane's two rows; a row times 0 is 0, whatever it holds.
template <int Count>
DEVICE void scale_rows(float (&values)[Count], const float (&factor)[2]) {
    UNROLL
    for (int i = 0; i < Count; ++i) values[i] = factor[i / 2 % 2] == 0 ? 0.0f : values[i] * factor[i / 2 % 2];
}

}  // namespace core
