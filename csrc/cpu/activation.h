// Weights without normalisation: linear, relu or exp of their scores.
#pragma once
#include "call.h"
#include "simd.h"

namespace ISA {

// In place; 0 where a query may not look.
inline void activate(Selector selector, float* scores, int count, int width) {
    for (int at = 0; at < count * width; at += LANES) {
        const Floats score = min(splat(LARGEST), load(scores + at));
        if (selector == Selector::exp)
            store(scores + at, exp(score));
        else if (selector == Selector::relu)
            store(scores + at, score < 0.0f ? Floats{} : score);
        else
            store(scores + at, score == -INFINITY ? Floats{} : score);
    }
}

// Of the scores, from that of the weights, in its place. An infinite score is a constant.
inline void activation_gradient(Selector selector, const float* scores, float* gradient, int count, int width) {
    for (int at = 0; at < count * width; at += LANES) {
        const Floats score = load(scores + at), one = load(gradient + at);
        const Ints hidden = (selector == Selector::relu ? score <= 0.0f : score == -INFINITY) | (score == INFINITY);
        store(gradient + at, hidden ? Floats{} : selector == Selector::exp ? one * exp(score) : one);
    }
}

}  // namespace ISA
