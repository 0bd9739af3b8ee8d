// Before the backward: what each row's gradients have in common. Eight lanes take a row.
#pragma once
#include "core/online_softmax.h"
#include "params.h"
#include <ptx/launch.h>
#include <ptx/memory.h>
#include <ptx/number.h>
#include <ptx/shuffle.h>

namespace kernels {

// 16 bytes, read at once.
struct alignas(16) Eight {
    uint32_t pairs[4];
};

template <class T>
struct BackwardRows {
    using Params = BackwardRowsParams;
    static constexpr const char* name = "backward_rows";
    static constexpr int threads = 256, blocks_per_multiprocessor = 4, shared_bytes = 0;
    static constexpr int LANES = 8, ROWS = threads / LANES;

    static DEVICE void run(const Params& params) {
        const int64_t index = static_cast<int64_t>(ptx::block_index()) * ROWS + ptx::thread_index() / LANES;
        const int lane = ptx::thread_index() % LANES;
        const int64_t head = index / params.padded_rows;
        const int row = static_cast<int>(index % params.padded_rows);
        const int batch = static_cast<int>(head / params.shape.heads),
                  own = static_cast<int>(head % params.shape.heads);
        const bool inside = batch < params.shape.batch, exists = inside && row < params.shape.len_q;
        float dot = 0;
        if (exists && params.output.data) {
            const T* output = params.output.row<T>(batch, own, row);
            const T* gradient = params.grad_output.row<T>(batch, own, row);
            for (int first = lane * 8; first < params.width; first += LANES * 8) {
                const Eight a = ptx::load_global(reinterpret_cast<const Eight*>(output + first));
                const Eight b = ptx::load_global(reinterpret_cast<const Eight*>(gradient + first));
                UNROLL
                for (int i = 0; i < 4; ++i) {
                    dot = fmaf(low(a.pairs[i]), low(b.pairs[i]), dot);
                    dot = fmaf(high(a.pairs[i]), high(b.pairs[i]), dot);
                }
            }
        }
        UNROLL
        for (int mask = 1; mask < LANES; mask *= 2) dot += ptx::shuffle_xor(dot, mask);
        if (lane != 0 || !inside) return;
        float lse = INFINITY, entropy = 0;
        if (exists) {
            const int64_t at = head * params.shape.len_q + row;
            lse = ptx::load_global(params.lse + at) * core::LOG2E;
            if (lse == -INFINITY) lse = INFINITY;  // a row with nothing to see: all its weights are 0
            if (params.entropy) entropy = ptx::load_global(params.entropy + at);
            if (params.row) dot += ptx::load_global(params.row + at);
        }
        ptx::store_global(params.lse_out + index, lse);
        ptx::store_global(params.row_out + index, dot);
        if (params.entropy_out) ptx::store_global(params.entropy_out + index, entropy);
    }

    static DEVICE float low(uint32_t pair) { return ptx::to_float(T{static_cast<uint16_t>(pair)}); }
    static DEVICE float high(uint32_t pair) { return ptx::to_float(T{static_cast<uint16_t>(pair >> 16)}); }
};

}  // namespace kernels
