// After the backward: the query's gradient, scaled, rounded, and put in order. A block takes one 64 x 64 square.
#pragma once
#include "core/tile.h"
#include "params.h"
#include <ptx/launch.h>
#include <ptx/memory.h>

namespace kernels {

template <class T>
struct BackwardQuery {
    using Params = BackwardQueryParams;
    static constexpr const char* name = "backward_query";
    static constexpr int threads = ptx::WARPGROUP, blocks_per_multiprocessor = 8, shared_bytes = 0;

    static DEVICE void run(const Params& params) {
        // the squares of all tiles, in the order of reading, are those of a head
        const int beside = params.squares_beside, squares = params.padded_rows / 64 * beside;
        const int head = ptx::block_index() / squares, square = ptx::block_index() % squares;
        const int row = square / beside * 64 + core::fragment_row();
        const int column = square % beside * 64 + core::fragment_column();
        const float4* sums = reinterpret_cast<const float4*>(params.sums) +
                             static_cast<int64_t>(ptx::block_index()) * (64 * 64 / 4) + ptx::thread_index();
        UNROLL
        for (int i = 0; i < 8; ++i) {
            const float4 sum = ptx::load_global(sums + i * threads);
            store(params, head, row, column + 8 * i, sum.x, sum.y);
            store(params, head, row + 8, column + 8 * i, sum.z, sum.w);
        }
    }

    static DEVICE void store(const Params& params, int head, int row, int column, float left, float right) {
        if (row >= params.shape.len_q || column >= params.width) return;
        T* place = params.grad_query.row<T>(head / params.shape.heads, head % params.shape.heads, row) + column;
        ptx::store_global(reinterpret_cast<uint32_t*>(place), ptx::pack<T>(left * params.scale, right * params.scale));
    }
};

}  // namespace kernels
