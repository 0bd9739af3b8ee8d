// Tiles of the forward, by width: rows of queries, keys of a block.
#pragma once
#include "instances/fill.h"
#include "kernels/softmax_forward.h"

namespace instances {

template <class Kernel, class T>
void run(const SoftmaxForwardCall& call) {
    SoftmaxForwardParams params;
    fill_forward<Kernel, T>(params, call.query, call.key, call.value, call.scores, 1, call.counter);
    params.output = map_of<T>(call.output, 64);
    params.scores = scores_of(call.scores, call.centers);
    params.lse = reinterpret_cast<float*>(call.lse);
    params.extras = extras_of(call.extras);
    launch_persistent<Kernel>(params, call.stream);
}

}  // namespace instances

template <class T, int Width>
void softmax_forward(const SoftmaxForwardCall& call) {
    constexpr int ROWS = Width <= 64 ? 192 : 128, ROWS_WITH_EXTRAS = 128;  // which take registers
    constexpr int KEYS = Width <= 128 ? 128 : 64, DENSE_KEYS = Width <= 64 ? 128 : Width <= 128 ? 160 : 80;
    using core::Sight;
    using kernels::SoftmaxForward;
    const auto run =
        call.centers.present ? instances::run<SoftmaxForward<T, Width, ROWS_WITH_EXTRAS, KEYS, Sight::CENTERS, true>, T>
        : call.extras.present ? instances::run<SoftmaxForward<T, Width, ROWS_WITH_EXTRAS, KEYS, Sight::WINDOW, true>, T>
        : call.scores.windowed() ? instances::run<SoftmaxForward<T, Width, ROWS, KEYS, Sight::WINDOW, false>, T>
                                 : instances::run<SoftmaxForward<T, Width, ROWS, DENSE_KEYS, Sight::ALL, false>, T>;
    run(call);
}
