// Kernels of the backward, by width, and their tiles: rows of a block of queries.
#pragma once
#include "instances/fill.h"
#include "kernels/backward_query.h"
#include "kernels/backward_rows.h"
#include "kernels/softmax_backward.h"
#include "kernels/softmax_backward_by_columns.h"

namespace instances {

template <class Kernel, class T, bool HasOutput>
void run(const SoftmaxBackwardCall& call) {
    constexpr int ROWS = Kernel::Query::ROWS, WIDTH = Kernel::Query::WIDTH;
    const auto stream = reinterpret_cast<ptx::Stream>(call.stream);
    const Shape shape = shape_of(call.query, call.key);
    const int64_t tiles = ceil_div(shape.len_q, ROWS), padded = tiles * ROWS, heads = heads_of(shape);

    BackwardRowsParams rows = {};
    if (HasOutput) {
        rows.output = rows_of(call.output);
        rows.grad_output = rows_of(call.grad_output);
    }
    rows.lse = reinterpret_cast<const float*>(call.lse);
    rows.row = reinterpret_cast<const float*>(call.row);
    rows.entropy = reinterpret_cast<const float*>(call.entropy);
    rows.lse_out = reinterpret_cast<float*>(call.row_space);
    rows.row_out = rows.lse_out + heads * padded;
    float* const third = rows.row_out + heads * padded;
    rows.entropy_out = HasOutput ? nullptr : third;
    rows.base_out = HasOutput ? third : nullptr;
    rows.query = rows_of(call.query);
    rows.key = rows_of(call.key);
    rows.head_width = static_cast<int>(call.query.sizes[3]);
    rows.scores = scores_of(call.scores, call.centers);
    rows.extras = extras_of(call.extras);
    rows.padded_rows = static_cast<int>(padded);
    rows.width = static_cast<int>(call.output.sizes[3]);
    rows.shape = shape;
    using RowsKernel = kernels::BackwardRows<T>;
    const int row_blocks = grid_of(RowsKernel::name, ceil_div(heads * padded, RowsKernel::ROWS));
    using QueryKernel = kernels::BackwardQuery<T>;
    const int query_blocks = grid_of(QueryKernel::name, heads * tiles * Kernel::SQUARES);
    const core::Tiling tiling =
        tiling_of(Kernel::name, ceil_div(shape.len_k, Kernel::KEYS), heads / shape.group,
                  heads_in_cache(static_cast<int64_t>(shape.len_q) * shape.group, WIDTH), false, call.counter);
    ptx::launch<RowsKernel>(rows, row_blocks, stream);

    SoftmaxBackwardParams params = {};
    params.query = map_of<T>(call.query, ROWS);
    params.key = map_of<T>(call.key, Kernel::KEYS);
    params.grad_key = map_of<T>(call.grad_key, 64);
    if (HasOutput) {
        params.value = map_of<T>(call.value, Kernel::KEYS);
        params.grad_output = map_of<T>(call.grad_output, ROWS);
        params.grad_value = map_of<T>(call.grad_value, 64);
    }
    params.lse = rows.lse_out;
    params.row = rows.row_out;
    params.entropy = rows.entropy_out;
    params.base = rows.base_out;
    params.grad_query = reinterpret_cast<float*>(call.query_space);
    params.padded_rows = static_cast<int>(padded);
    params.shape = shape;
    params.scores = rows.scores;
    params.extras = rows.extras;
    params.tiling = tiling;
    launch_persistent<Kernel>(params, call.stream);

    BackwardQueryParams query;
    query.sums = params.grad_query;
    query.grad_query = rows_of(call.grad_query);
    query.padded_rows = static_cast<int>(padded);
    query.squares_beside = Kernel::Query::COLUMNS;
    query.width = static_cast<int>(call.query.sizes[3]);
    query.scale = call.scores.scale;
    query.shape = shape;
    ptx::launch<QueryKernel>(query, query_blocks, stream);
}

}  // namespace instances

template <class T, int Width>
void softmax_backward(const SoftmaxBackwardCall& call) {
    constexpr int ROWS = Width == 128 ? 64 : 128, ROWS_BY_COLUMNS = Width <= 128 ? 128 : 64;
    const bool has_output = call.output.address != 0, windowed = call.scores.windowed();
    const auto by_columns = [&](auto sight, auto output_is_there, auto has_extras) {
        constexpr bool OUTPUT = output_is_there(), EXTRAS = has_extras();
        using kernels::SoftmaxBackwardByColumns;
        instances::run<SoftmaxBackwardByColumns<T, Width, ROWS_BY_COLUMNS, sight(), OUTPUT, EXTRAS>, T, OUTPUT>(call);
    };
    const auto plain = [&](auto sight, auto output_is_there) {
        constexpr bool OUTPUT = output_is_there();
        if constexpr (Width > 128)
            by_columns(sight, output_is_there, std::false_type());
        else
            instances::run<kernels::SoftmaxBackward<T, Width, ROWS, sight(), OUTPUT>, T, OUTPUT>(call);
    };
    const std::integral_constant<core::Sight, core::Sight::ALL> all;
    const std::integral_constant<core::Sight, core::Sight::WINDOW> window;
    const std::integral_constant<core::Sight, core::Sight::CENTERS> centers;
    const std::true_type yes;
    const std::false_type no;
    if (call.centers.present) return by_columns(centers, yes, yes);
    if (call.extras.present) return by_columns(window, yes, yes);
    if (has_output) return windowed ? plain(window, yes) : plain(all, yes);
    windowed ? plain(window, no) : plain(all, no);
}
