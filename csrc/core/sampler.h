// Exact samples from the softmax of a row whose scores come in blocks of 64 keys, one uniform number per block and
// sample: with `b` the mass of a block and `l` the sum so far, this block included, a sample moves to the block if
// u l < b, to the first key at which the block's running sum exceeds u l. Beside it the row's lse and entropy.
//
// State of a lane's two rows; the four lanes that share the rows agree on all of it but the partial sums.
#pragma once
#include "core/online_softmax.h"
#include "core/philox.h"

namespace core {

template <int Samples>
struct Sampler : RunningMaximum {
    float sum[2] = {0, 0};
    float partial_sum[2] = {0, 0}, partial_surprise[2] = {0, 0};  // sum of w log2 w, over this lane's columns
    int index[2][Samples];
    float score[2][Samples];

    DEVICE explicit Sampler(float unit) : RunningMaximum{unit} {
        UNROLL
        for (int r = 0; r < 2 * Samples; ++r) index[r / Samples][r % Samples] = -1, score[r / Samples][r % Samples] = 0;
    }

    // Raises the maxima to those of the scores, as OnlineSoftmax does, and takes off what is far out.
    template <int Count>
    DEVICE void raise(float (&scores)[Count]) {
        float top[2];
        if (grows(scores, maximum, unit, top)) raise_to(top);
        take_off(scores);
    }
    // 64 x 64 scores: the registers from `First` on. `words`: for each of the lane's two rows.
    template <int First, int Count>
    DEVICE void take(const float (&scores)[Count], int first_key, const Words (&words)[2]) {
        float mass[32], block[2] = {0, 0};
        UNROLL
        for (int i = 0; i < 32; ++i) {
            const int row = i / 2 % 2;
            const float distance = ptx::max_or_nan(fmaf(scores[First + i], unit, -shift(row)), FAR);
            mass[i] = ptx::exp2_approximate(distance);
            block[row] += mass[i];
            partial_surprise[row] = fmaf(mass[i], distance, partial_surprise[row]);
        }
        float target[2][Samples];
        bool moves[2] = {false, false};
        UNROLL
        for (int row = 0; row < 2; ++row) {
            partial_sum[row] += block[row];
            block[row] = sum_of_four(block[row]);
            sum[row] += block[row];
            UNROLL
            for (int r = 0; r < Samples; ++r) {
                target[row][r] = uniform(words[row].word[r]) * sum[row];
                moves[row] = moves[row] || moves_to(row, r, block[row], target[row][r]);
            }
        }
        UNROLL
        for (int row = 0; row < 2; ++row)
            if (ptx::any_lane(moves[row])) search<First>(scores, mass, row, first_key, block[row], target[row]);
    }

    // The natural log-sum-exp and entropy.
    DEVICE void finish(float (&lse)[2], float (&entropy)[2]) const {
        UNROLL
        for (int row = 0; row < 2; ++row) {
            const float surprise = sum_of_four(partial_surprise[row]);
            const float log_sum = ptx::log2_approximate(sum[row]);
            lse[row] = sum[row] == 0 ? -INFINITY : log_sum_exp(row, sum[row]);
            entropy[row] = sum[row] == 0 ? 0.0f : (log_sum - surprise / sum[row]) * LN2;
        }
    }

  private:
    DEVICE void raise_to(const float (&top)[2]) {
        UNROLL
        for (int row = 0; row < 2; ++row) {
            if (!(top[row] > maximum[row])) continue;
            const float drop = fmaxf((maximum[row] - top[row]) * unit, FAR), shrink = ptx::exp2_approximate(drop);
            partial_surprise[row] = shrink * (partial_surprise[row] + drop * partial_sum[row]);
            partial_sum[row] *= shrink;
            sum[row] *= shrink;
            maximum[row] = top[row];
        }
        look();
    }

    // The first block with any mass is always taken; rounding must not lose it.
    DEVICE bool moves_to(int row, int sample, float block, float target) const {
        return block > 0 && (target < block || index[row][sample] < 0);
    }

    // How many keys' running sums each target reaches.
    template <int First, int Count>
    DEVICE void search(const float (&scores)[Count], const float (&mass)[32], int row, int first_key, float block,
                       const float (&target)[Samples]) {
        const int lane = ptx::lane_index() % 4;
        int reached[Samples] = {}, last = -1;
        float before = 0;
        UNROLL
        for (int group = 0; group < 8; ++group) {
            const float left = row ? mass[4 * group + 2] : mass[4 * group];
            const float right = row ? mass[4 * group + 3] : mass[4 * group + 1];
            float own = left + right, up;
            up = ptx::shuffle_up(own, 1);
            if (lane >= 1) own += up;
            up = ptx::shuffle_up(own, 2);
            if (lane >= 2) own += up;
            up = ptx::shuffle_up(own, 1);
            const float start = lane >= 1 ? before + up : before;
            UNROLL
            for (int r = 0; r < Samples; ++r)
                reached[r] += (start + left <= target[r]) + (start + left + right <= target[r]);
            if (left > 0) last = 8 * group + 2 * lane;
            if (right > 0) last = 8 * group + 2 * lane + 1;
            before += ptx::shuffle(own, ptx::lane_index() | 3);
        }
        last = static_cast<int>(max_of_four(static_cast<float>(last)));
        UNROLL
        for (int r = 0; r < Samples; ++r) {
            reached[r] += ptx::shuffle_xor(reached[r], 1);
            reached[r] += ptx::shuffle_xor(reached[r], 2);
            const int place = reached[r] < last ? reached[r] : last;
            float found = -INFINITY;
            UNROLL
            for (int i = 0; i < 16; ++i) {
                const int column = i / 2 * 8 + lane * 2 + i % 2, at = First + i / 2 * 4 + i % 2;
                if (column == place) found = row ? scores[at + 2] : scores[at];
            }
            found = max_of_four(found);
            if (moves_to(row, r, block, target[r]))
                index[row][r] = first_key + place, score[row][r] = found + base(row);
        }
    }
};

}  // namespace core
