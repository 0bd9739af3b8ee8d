// The gradient of attn_mask: dS, summed over the dimensions in which the mask is broadcast. Each item of work owns some
// of the mask's entries, and adds to them in a fixed order.
#pragma once
#include "../score_gradient.h"

namespace ISA {

inline void add_mask_gradient(const Call& call, const Backward& given, const Sequence& sequence, const RowTile& tile) {
    Scratch scratch(TileGradient::size(call));
    TileGradient found(scratch, call, given, sequence, tile);
    const Tensor& to = given.grad_mask.entries;
    const int64_t step = to.strides[3];
    found.each([&](const ScoreGradient& block) {
        for (int i = 0; i < tile.count; ++i) {
            auto* place = reinterpret_cast<float*>(to.at(tile.batch, tile.head[i], tile.row[i]));
            double sum = 0;
            for (int64_t j = block.range.begin; j < block.range.end; ++j) {
                const float one = block.gradient[(j - block.range.begin) * tile.width + i];
                if (step) place[j * step] += one;
                sum += one;
            }
            if (!step) *place += static_cast<float>(sum);
        }
    });
}

inline void mask_gradient(const Call& call, const Backward& given) {
    const int rows = call.tile_rows;
    const int64_t* sizes = given.grad_mask.sizes;
    const bool each_batch = sizes[0] > 1, each_head = sizes[1] > 1, each_row = sizes[2] > 1;
    const int64_t tiles = Tiling(call, call.len_q, rows, true).per_head;
    const int64_t batches = each_batch ? call.batch : 1, heads = each_head ? call.heads : 1,
                  parts = each_row ? tiles : 1;
    const auto shared = [](bool each, int64_t one, int64_t all) {
        return KeyRange{each ? one : 0, each ? one + 1 : all};  // those that an item's entries serve
    };
    const Order order(call);
    parallel(call.threads, batches * heads * parts, [&](int64_t item) {
        const KeyRange batch = shared(each_batch, item / parts / heads, call.batch);
        const KeyRange head = shared(each_head, item / parts % heads, call.heads);
        for (int64_t b = batch.begin; b < batch.end; ++b) {
            const Sequence sequence(call, b);
            const Tiling tiling(call, sequence.len_q, rows, true);
            const KeyRange part = shared(each_row, item % parts, tiling.per_head);
            for (int64_t h = head.begin; h < head.end; ++h)
                for (int64_t t = part.begin; t < part.end && t < tiling.per_head; ++t)
                    add_mask_gradient(call, given, sequence,
                                      RowTile(call, sequence, tiling, order, h / tiling.group,
                                              h % tiling.group * tiling.per_head + t));
        }
    });
}

}  // namespace ISA
