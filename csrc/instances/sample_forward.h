// The sampler, for one sample or four at once.
#pragma once
#include "instances/fill.h"
#include "kernels/sample_forward.h"

namespace instances {

template <class Kernel, class T>
void run(const SampleForwardCall& call) {
    SampleForwardParams params;
    fill_forward<Kernel, T>(params, call.query, call.key, call.key, call.scores, ceil_div(call.samples, 4),
                            call.counter);
    params.seed = reinterpret_cast<const int64_t*>(call.seed);
    params.index = reinterpret_cast<int64_t*>(call.index);
    params.score = reinterpret_cast<float*>(call.score);
    params.lse = reinterpret_cast<float*>(call.lse);
    params.entropy = reinterpret_cast<float*>(call.entropy);
    params.samples = call.samples;
    launch_persistent<Kernel>(params, call.stream);
}

}  // namespace instances

template <class T, int Width>
void sample_forward(const SampleForwardCall& call) {
    using core::Sight;
    using kernels::SampleForward;
    constexpr int ROWS = Width <= 128 ? 192 : 128, STAGES = Width <= 128 ? 3 : 2;
    const bool one = call.samples == 1, windowed = call.scores.windowed();
    const auto run = one        ? windowed ? instances::run<SampleForward<T, Width, ROWS, STAGES, 1, Sight::WINDOW>, T>
                                           : instances::run<SampleForward<T, Width, ROWS, STAGES, 1, Sight::ALL>, T>
                     : windowed ? instances::run<SampleForward<T, Width, 128, STAGES, 4, Sight::WINDOW>, T>
                                : instances::run<SampleForward<T, Width, 128, STAGES, 4, Sight::ALL>, T>;
    run(call);
}
