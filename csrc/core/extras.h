// What else may shape scores and weights: a soft cap, a mask or bias tensor, dropout. Elements are visited in the order
// of a warpgroup's accumulators, whose rows are queries (forward) or keys (backward).
#pragma once
#include "core/online_softmax.h"
#include "core/philox.h"
#include "core/tile.h"
#include "params.h"
#include <ptx/memory.h>

namespace core {

// Accurate to the last bits of 1, not of small results: enough for scores.
DEVICE float tanh_of(float x) {
    const float magnitude = 1 - 2 / (ptx::exp2_approximate(fminf(fabsf(x), 44.0f) * (2 * LOG2E)) + 1);
    return x < 0 ? -magnitude : magnitude;
}

// Of one head.
template <class T>
struct Extras {
    const ScoreExtras& options;
    int len_q, len_k;
    int64_t mask_start, gradient_start;
    uint32_t batch_head;

    DEVICE Extras(const ScoreExtras& options, const Shape& shape, int batch, int head)
        : options(options),
          len_q(shape.len_q),
          len_k(shape.len_k),
          mask_start(batch * options.mask_strides[0] + head * options.mask_strides[1]),
          gradient_start(batch * options.gradient_strides[0] + head * options.gradient_strides[1]),
          batch_head(batch * shape.heads + head) {}

    // What the mask adds, in natural units.
    DEVICE float bias(int query, int key) const {
        if (options.mask_kind == ScoreExtras::NONE) return 0;
        if (query >= len_q || key >= len_k) return -INFINITY;
        const int64_t at = mask_start + query * options.mask_strides[2] + key * options.mask_strides[3];
        if (options.mask_kind == ScoreExtras::BOOL)
            return ptx::load_global(static_cast<const uint8_t*>(options.mask) + at) ? 0.0f : -INFINITY;
        if (options.mask_kind == ScoreExtras::FLOAT)
            return ptx::load_global(static_cast<const float*>(options.mask) + at);
        return ptx::to_float(ptx::load_global(static_cast<const T*>(options.mask) + at));
    }

    DEVICE float capped(float score) const {
        return caps() ? options.softcap * tanh_of(score / options.softcap) : score;
    }
    DEVICE bool caps() const { return options.softcap > 0; }

    // The score that the mask makes of a capped product. A hidden key stays hidden, whatever it holds.
    DEVICE float biased(float capped, int query, int key) const {
        const float added = bias(query, key);
        return added == -INFINITY ? added : ptx::min_or_nan(capped + added, LARGEST);
    }
    DEVICE float score(float product, int query, int key) const { return biased(capped(product), query, key); }

    // Derivative of the soft cap, from what it gave; 1 without.
    DEVICE float slope(float capped) const {
        if (!caps()) return 1;
        const float relative = capped / options.softcap;
        return fmaxf(1 - relative * relative, 0.0f);
    }

    DEVICE bool drops() const { return options.dropout_threshold > 0; }

    DEVICE bool keeps(uint32_t word) const { return word >> 8 >= options.dropout_threshold; }
    DEVICE float factor(bool kept) const { return kept ? options.dropout_scale : 0.0f; }

    DEVICE Words draw(int query, int key) const {
        return philox<true>(ptx::load_global(options.seed), query, batch_head, 0, (key + options.first_key) / 4);
    }

    // Multiplies weights whose rows are queries; `query` and `key` are those of register 0. Of the four lanes that share
    // two rows, each draws for one row and four keys.
    template <int Count>
    DEVICE void drop_by_query(float (&weights)[Count], int query, int key) const {
        const int lane = ptx::lane_index() % 4, odd = lane % 2;
        UNROLL
        for (int i = 0; i < Count; i += 4) {
            const Words own = draw(query + 8 * odd, key - 2 * odd + 2 * i);
            const uint32_t first = ptx::shuffle_xor(odd ? own.word[0] : own.word[2], 1);
            const uint32_t second = ptx::shuffle_xor(odd ? own.word[1] : own.word[3], 1);
            weights[i] *= factor(keeps(odd ? first : own.word[0]));
            weights[i + 1] *= factor(keeps(odd ? second : own.word[1]));
            weights[i + 2] *= factor(keeps(odd ? own.word[2] : first));
            weights[i + 3] *= factor(keeps(odd ? own.word[3] : second));
        }
    }

    // Which of four weights dropout keeps whose rows are keys, as bits: registers i ... i + 3, of which the first stands
    // at `query` and `key`. Of the four lanes that share their words, each draws for one of the four and passes them on.
    DEVICE uint32_t kept_by_key(int query, int key) const {
        const int place = ptx::lane_index() / 4 % 4;
        Words w = draw(query + place % 2, key + place / 2 * 8);
        swap_across(w.word[0], w.word[1], place % 2, 4);
        swap_across(w.word[2], w.word[3], place % 2, 4);
        swap_across(w.word[0], w.word[2], place / 2, 8);
        swap_across(w.word[1], w.word[3], place / 2, 8);
        uint32_t bits = 0;
        UNROLL
        for (int i = 0; i < 4; ++i) bits |= static_cast<uint32_t>(keeps(w.word[i])) << i;
        return bits;
    }

    // Adds to the mask's gradient, summed over the dimensions that it is broadcast over.
    DEVICE void add_gradient(float gradient, int query, int key) const {
        if (query < len_q && key < len_k)
            ptx::add_global(options.mask_gradient + gradient_start + query * options.gradient_strides[2] +
                                key * options.gradient_strides[3],
                            gradient);
    }

  private:
    // One step of a transposition: the upper lane gives its `low` for the lower one's `high`.
    static DEVICE void swap_across(uint32_t& low, uint32_t& high, bool upper, int mask) {
        const uint32_t other = ptx::shuffle_xor(upper ? low : high, mask);
        (upper ? low : high) = other;
    }
};

}  // namespace core
