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

constexpr float LARGEST = 3.4e38f;    // what a score that a mask makes infinite counts as
constexpr float FARTHEST_LSE = 1024;  // whose rounding is nothing beside a weight's
constexpr float FAR = -1e4f;          // 2 to the FAR is 0, and 0 * FAR is not NaN

// Over the four lanes that share a row.
DEVICE float sum_of_four(float value) {
    value += ptx::shuffle_xor(value, 1);
    return value + ptx::shuffle_xor(value, 2);
}

DEVICE float max_of_four(float value) {
    value = fmaxf(value, ptx::shuffle_xor(value, 1));
    return fmaxf(value, ptx::shuffle_xor(value, 2));
}

// The rows' maxima, with the scores that come now, in `top`; true if any of the warp grows by more than the slack.
template <int Count>
DEVICE bool grows(float (&scores)[Count], const float (&maximum)[2], float unit, float (&top)[2]) {
    UNROLL
    for (int row = 0; row < 2; ++row) top[row] = maximum[row];
    UNROLL
    for (int i = 0; i < Count; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], scores[i]);
    bool grown = false;
    UNROLL
    for (int row = 0; row < 2; ++row) {
        top[row] = max_of_four(top[row]);
        grown = grown || (top[row] - maximum[row]) * unit > SLACK;  // of -inf and -inf NaN, which is not greater
    }
    grown = ptx::any_lane(grown);
    if (grown) clamp_infinite(scores, top, unit);
    return grown;
}

constexpr float LARGEST_SHIFT = 1 << 20;  // units of log2 whose rounding matters little

// What a row's scores are relative to. A maximum far out, such as a mask's -1e30 for a whole row, is taken off before
// they are scaled: its units of log2 would be rounded by more than scores differ, or be infinite.
struct RunningMaximum {
    float unit;                                 // scores times this are in units of log2
    float maximum[2] = {-INFINITY, -INFINITY};  // of the scores as they come
    bool far = false;                           // whether any row of the warp is far out

    DEVICE void look() { far = ptx::any_lane(is_far(0) || is_far(1)); }
    // A row that has seen no key yet has no maximum.
    DEVICE float base(int row) const { return far && maximum[row] > -INFINITY ? maximum[row] : 0.0f; }
    DEVICE float shift(int row) const { return far || maximum[row] == -INFINITY ? 0.0f : maximum[row] * unit; }

    template <int Count>
    DEVICE void take_off(float (&scores)[Count]) const {
        if (!far) return;
        const float bases[2] = {base(0), base(1)};
        UNROLL
        for (int i = 0; i < Count; ++i) scores[i] -= bases[i / 2 % 2];
    }

    // The natural log-sum-exp of a row, from the sum of its weights.
    DEVICE float log_sum_exp(int row, float total) const {
        const float log_sum = ptx::log2_approximate(total);
        return fmaf(base(row), unit * LN2, (shift(row) + log_sum) * LN2);
    }

  private:
    DEVICE bool is_far(int row) const { return maximum[row] > -INFINITY && fabsf(maximum[row] * unit) > LARGEST_SHIFT; }
};

struct OnlineSoftmax : RunningMaximum {
    float sum[2] = {0, 0};  // over this lane's columns only

    // Turns scores into weights relative to the maximum. While no row's maximum grows by more than SLACK units the
    // old one serves on; else it returns true, and `shrink` is what older weights shrink by.
    template <int Count>
    DEVICE bool update(float (&scores)[Count], float (&shrink)[2]) {
        float top[2];
        const bool grown = grows(scores, maximum, unit, top);
        if (grown) {
            UNROLL
            for (int row = 0; row < 2; ++row) {
                shrink[row] = top[row] == -INFINITY ? 1.0f : ptx::exp2_approximate((maximum[row] - top[row]) * unit);
                sum[row] *= shrink[row];
                maximum[row] = top[row];
            }
            look();
        }
        take_off(scores);
        const float shifts[2] = {shift(0), shift(1)};
        UNROLL
        for (int i = 0; i < Count; ++i) {
            const int row = i / 2 % 2;
            scores[i] = ptx::exp2_approximate(fmaf(scores[i], unit, -shifts[row]));
            sum[row] += scores[i];
        }
        return grown;
    }

    // After the last block: what to multiply the accumulated values by, and the natural log-sum-exp.
    DEVICE void finish(float (&scale)[2], float (&lse)[2]) {
        UNROLL
        for (int row = 0; row < 2; ++row) {
            const float total = sum_of_four(sum[row]);
            scale[row] = total == 0 ? 0.0f : 1 / total;  // NaN stays NaN
            lse[row] = total == 0 ? -INFINITY : log_sum_exp(row, total);
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
