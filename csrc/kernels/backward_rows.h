// Before the backward: what each row's gradients have in common. Eight lanes take a row.
#pragma once
#include "core/extras.h"
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
        float mean = 0;
        if (exists && params.output.data)
            mean = dot(params.output.row<T>(batch, own, row), params.grad_output.row<T>(batch, own, row), params.width,
                       lane * 8, LANES * 8);
        UNROLL
        for (int mask = 1; mask < LANES; mask *= 2) mean += ptx::shuffle_xor(mean, mask);
        const float total = total_of(params, batch, own, row, lane, exists);
        if (lane != 0 || !inside) return;
        float lse = INFINITY, entropy = 0, base = 0;
        if (exists) {
            const int64_t at = head * params.shape.len_q + row;
            lse = ptx::load_global(params.lse + at);
            if (total > 0) base = lse;
            lse = total > 0 ? ptx::log2_approximate(total) : lse * core::LOG2E;
            if (lse == -INFINITY) lse = INFINITY;  // a row with nothing to see: all its weights are 0
            if (params.entropy) entropy = ptx::load_global(params.entropy + at);
            if (params.row) mean += ptx::load_global(params.row + at);
        }
        ptx::store_global(params.lse_out + index, lse);
        ptx::store_global(params.row_out + index, mean);
        if (params.entropy_out) ptx::store_global(params.entropy_out + index, entropy);
        if (params.base_out) ptx::store_global(params.base_out + index, base);
    }

    // Of a row that a mask puts so far out that its lse has lost the logarithm: the sum of the weights that it gives. 0
    // for every other row. Each of the eight lanes takes every eighth key.
    static DEVICE float total_of(const Params& params, int batch, int head, int row, int lane, bool exists) {
        float total = 0;
        if (exists && params.base_out && params.extras.mask_kind > ScoreExtras::BOOL) {
            const Shape& shape = params.shape;
            const int64_t at = (static_cast<int64_t>(batch) * shape.heads + head) * shape.len_q + row;
            const float lse = ptx::load_global(params.lse + at);
            if (fabsf(lse) > core::FARTHEST_LSE && lse != -INFINITY) {
                const core::Extras<T> extras(params.extras, shape, batch, head);
                const core::Range keys = params.scores.window.keys_of(row, shape.len_k);
                const T* query = params.query.row<T>(batch, head, row);
                for (int key = keys.begin + lane; key < keys.end; key += LANES) {
                    const float product =
                        dot(query, params.key.row<T>(batch, head / shape.group, key), params.head_width);
                    const float distance = extras.score(product * params.scores.scale, row, key) - lse;
                    total += ptx::exp2_approximate(fminf(distance, 0.0f) * core::LOG2E);
                }
            }
        }
        UNROLL
        for (int mask = 1; mask < LANES; mask *= 2) total += ptx::shuffle_xor(total, mask);
        return total;
    }

    // Of columns [first, width), every `step`-th eight of them.
    static DEVICE float dot(const T* left, const T* right, int width, int first = 0, int step = 8) {
        float sum = 0;
        for (; first < width; first += step) {
            const Eight a = ptx::load_global(reinterpret_cast<const Eight*>(left + first));
            const Eight b = ptx::load_global(reinterpret_cast<const Eight*>(right + first));
            UNROLL
            for (int i = 0; i < 4; ++i) {
                sum = fmaf(low(a.pairs[i]), low(b.pairs[i]), sum);
                sum = fmaf(high(a.pairs[i]), high(b.pairs[i]), sum);
            }
        }
        return sum;
    }

    static DEVICE float low(uint32_t pair) { return ptx::to_float(T{static_cast<uint16_t>(pair)}); }
    static DEVICE float high(uint32_t pair) { return ptx::to_float(T{static_cast<uint16_t>(pair >> 16)}); }
};

}  // namespace kernels
