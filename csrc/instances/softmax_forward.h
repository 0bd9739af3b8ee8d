// Tiles of the forward, by width: rows of queries, keys of a block.
#pragma once
#include "instances/fill.h"
#include "kernels/softmax_forward.h"

namespace instances {

template <class Kernel, class T>
void run(const SoftmaxForwardCall& call) {
    SoftmaxForwardParams params;
    params.query = map_of<T>(call.query, Kernel::Query::ROWS);
    params.key = map_of<T>(call.key, Kernel::Key::ROWS);
    params.value = map_of<T>(call.value, Kernel::Key::ROWS);
    params.output = map_of<T>(call.output, 64);
    params.lse = reinterpret_cast<float*>(call.lse);
    params.shape = shape_of(call.query, call.key);
    params.scores = scores_of(call.scores);
    params.extras = extras_of(call.extras);
    const Shape& shape = params.shape;
    params.tiling = {ceil_div(shape.len_q, Kernel::Query::ROWS), shape.batch * shape.heads,
                     shape.group * heads_in_cache(shape.len_k, Kernel::Key::WIDTH), call.scores.right >= 0,
                     reinterpret_cast<int*>(call.counter)};
    launch_persistent<Kernel>(params, call.stream);
}

}  // namespace instances

template <class T, int Width>
void softmax_forward(const SoftmaxForwardCall& call) {
    constexpr int ROWS = Width <= 64 ? 192 : 128;
    constexpr int KEYS = Width <= 128 ? 128 : 64, DENSE_KEYS = Width <= 64 ? 128 : Width <= 128 ? 160 : 80;
    using kernels::SoftmaxForward;
    const auto run = call.extras.present ? instances::run<SoftmaxForward<T, Width, ROWS, KEYS, true, true>, T>
                     : call.scores.windowed()
                         ? instances::run<SoftmaxForward<T, Width, ROWS, KEYS, true, false>, T>
                         : instances::run<SoftmaxForward<T, Width, ROWS, DENSE_KEYS, false, false>, T>;
    run(call);
}
