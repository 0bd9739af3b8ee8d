// A persistent block that holds a tile of keys, and of values, while the blocks of queries that look at them pass by,
// with their outputs' gradients: one producer warp copies them in, two consumer warpgroups make the gradients.
#pragma once
#include "core/online_softmax.h"
#include "core/prior.h"
#include "core/ring.h"
#include "core/schedule.h"
#include "core/tile.h"
#include "params.h"
#include <ptx/fence.h>
#include <ptx/launch.h>
#include <ptx/memory.h>
#include <ptx/named_barrier.h>

namespace core {

// Without an output, only lse and entropy have gradients: there is no value. With a base, scores are relative to that.
template <int Width, int Rows, int Keys, int GradOutputStages, Sight Seen, bool HasOutput, bool HasBase = false>
struct KeyTiles {
    using Query = Tile<Rows, Width>;
    using Key = Tile<Keys, Width>;
    static constexpr int GROUPS = 2, KEYS = Keys, STAGES = 2, GRAD_OUTPUT_STAGES = GradOutputStages;
    static constexpr int threads = (GROUPS + 1) * ptx::WARPGROUP, blocks_per_multiprocessor = 1;
    static constexpr int PRODUCER_REGISTERS = 24, CONSUMER_REGISTERS = 240;

    // A block's gradient of the queries is shared out in 64 x 64 squares, in the order of reading.
    static constexpr int SQUARES = Rows / 64 * Query::COLUMNS;
    static constexpr int SQUARE = 64 * 64, SQUARE_BYTES = SQUARE * 4;

    // shared memory, from its start; what a kernel needs besides begins at OWN
    static constexpr int ROW_BYTES = Rows * 4;
    static constexpr int LSE = 0, ROW = LSE + STAGES * ROW_BYTES, ENTROPY = ROW + STAGES * ROW_BYTES;
    static constexpr int BASE = ENTROPY + (HasOutput ? 0 : STAGES * ROW_BYTES);
    static constexpr int KEY_RING = BASE + HasBase * STAGES * ROW_BYTES;
    static constexpr int QUERY_RING = KEY_RING + RingBarriers<1>::BYTES;
    static constexpr int GRAD_OUTPUT_RING = QUERY_RING + RingBarriers<STAGES>::BYTES;
    static constexpr int NUMBER = GRAD_OUTPUT_RING + RingBarriers<GRAD_OUTPUT_STAGES>::BYTES;  // of the tile
    static constexpr int KEY = (NUMBER + 4 + 1023) / 1024 * 1024, VALUE = KEY + Key::BYTES;
    static constexpr int QUERIES = VALUE + HasOutput * Key::BYTES, GRAD_OUTPUTS = QUERIES + STAGES * Query::BYTES;
    static constexpr int OWN = GRAD_OUTPUTS + HasOutput * GRAD_OUTPUT_STAGES * Query::BYTES;

    // named barriers
    static constexpr int ALL_CONSUMERS = 1, GROUP = 2;

    const SoftmaxBackwardParams& params;
    uint32_t shared = ptx::shared_memory();
    RingBarriers<1> key_ring{shared + KEY_RING};
    RingBarriers<STAGES> query_ring{shared + QUERY_RING};
    RingBarriers<GRAD_OUTPUT_STAGES> grad_output_ring{shared + GRAD_OUTPUT_RING};

    DEVICE explicit KeyTiles(const SoftmaxBackwardParams& params) : params(params) {}

    // Consumers give a stage back by a lane of each warp.
    DEVICE void init_rings() const {
        if (ptx::thread_index() == 0) {
            key_ring.init(4 * GROUPS);
            query_ring.init(4 * GROUPS);
            if (HasOutput) grad_output_ring.init(4 * GROUPS);
            ptx::fence_barrier_init();
        }
        ptx::block_sync();
    }

    // One tile of keys, and the blocks of queries that look at it.
    struct Work {
        int batch, kv_head;
        Range keys, blocks;
    };

    DEVICE Work work_of(int number) const {
        const Place at = params.tiling[number];
        const Shape& shape = params.shape;
        const int kv_heads = shape.heads / shape.group;
        Work work;
        work.batch = at.head / kv_heads;
        work.kv_head = at.head % kv_heads;
        work.keys = {at.tile * KEYS, at.tile * KEYS + KEYS};
        work.blocks = {0, (shape.len_q + Rows - 1) / Rows};
        if constexpr (Seen == Sight::CENTERS)  // no heads share keys then
            work.blocks = ptx::load_global(params.scores.centers.blocks + at.head * params.tiling.tiles + at.tile);
        if constexpr (Seen == Sight::WINDOW)
            work.blocks = params.scores.window.query_blocks(work.keys, Rows, shape.len_q);
        return work;
    }

    DEVICE void produce() const {
        const Shape& shape = params.shape;
        Ring<1> key_stage;
        Ring<STAGES> stage;
        Ring<GRAD_OUTPUT_STAGES> grad_output_stage;
        int number = ptx::block_index();
        while (number < params.tiling.total()) {
            const Work work = work_of(number);
            tell(key_stage, number, (1 + HasOutput) * Key::BYTES);
            number = params.tiling.next();
            Key::load(shared + KEY, params.key, key_ring.full(key_stage), work.keys.begin, work.kv_head, work.batch);
            if constexpr (HasOutput)
                Key::load(shared + VALUE, params.value, key_ring.full(key_stage), work.keys.begin, work.kv_head,
                          work.batch);
            key_stage.next();
            for (int head = work.kv_head * shape.group; head < (work.kv_head + 1) * shape.group; ++head) {
                NO_UNROLL
                for (int block = work.blocks.begin; block < work.blocks.end; ++block) {
                    const int row = block * Rows;
                    const int64_t at = static_cast<int64_t>(work.batch * shape.heads + head) * params.padded_rows + row;
                    auto load_rows = [&](int place, const float* rows, int stage, uint32_t barrier) {
                        ptx::load_bytes(shared + place + stage * ROW_BYTES, rows + at, ROW_BYTES, barrier);
                    };
                    query_ring.begin_fill(stage, Query::BYTES + ((HasOutput ? 1 : 3) + HasBase) * ROW_BYTES);
                    Query::load(shared + QUERIES + stage.stage * Query::BYTES, params.query, query_ring.full(stage),
                                row, head, work.batch);
                    load_rows(LSE, params.lse, stage.stage, query_ring.full(stage));
                    if constexpr (HasBase) load_rows(BASE, params.base, stage.stage, query_ring.full(stage));
                    if constexpr (HasOutput) {
                        const uint32_t full = grad_output_ring.full(grad_output_stage);
                        grad_output_ring.begin_fill(grad_output_stage, Query::BYTES + ROW_BYTES);
                        Query::load(shared + GRAD_OUTPUTS + grad_output_stage.stage * Query::BYTES, params.grad_output,
                                    full, row, head, work.batch);
                        load_rows(ROW, params.row, grad_output_stage.stage, full);
                        grad_output_stage.next();
                    } else {
                        load_rows(ROW, params.row, stage.stage, query_ring.full(stage));
                        load_rows(ENTROPY, params.entropy, stage.stage, query_ring.full(stage));
                    }
                    stage.next();
                }
            }
        }
        tell(key_stage, number, 0);
    }

    // Which tile the next keys belong to; the last time, that there are none.
    DEVICE void tell(const Ring<1>& stage, int number, int bytes) const {
        key_ring.wait_empty(stage);
        ptx::store_shared_int(shared + NUMBER, number);
        key_ring.announce(stage, bytes);
    }

    // Consumers: waits for keys, to learn their tile's number.
    DEVICE int meet(const Ring<1>& stage) const {
        key_ring.wait_full(stage);
        return ptx::load_shared_int(shared + NUMBER);
    }

    // Until nobody reads the buffers of the gradients of scores and queries any more.
    DEVICE void wait_for_buffers(bool first_thread) const {
        if (first_thread) ptx::wait_stores_read<0>();
        ptx::named_barrier_sync(ALL_CONSUMERS, GROUPS * ptx::WARPGROUP);
    }

    // A warpgroup's accumulators of scores: 64 keys from `key`, whose columns are the queries of a block from
    // `query` on. Calls function(i, value) for each of them with the value of its query, of those at `place`.
    template <int Count, class Function>
    DEVICE void for_each_row(float (&)[Count], int place, int stage, int query, Function function) const {
        const uint32_t values = shared + place + stage * ROW_BYTES + (query + fragment_column()) * 4;
        UNROLL
        for (int i = 0; i < Count; i += 4) {
            const float2 value = ptx::load_shared2(values + i * 8);
            function(i, value.x);
            function(i + 1, value.y);
            function(i + 2, value.x);
            function(i + 3, value.y);
        }
    }

    // Hides the scores of queries that do not look at a key.
    template <int Count>
    DEVICE void mask(float (&scores)[Count], int key, int query) const {
        const Shape& shape = params.shape;
        bool whole = key + 64 <= shape.len_k;
        if constexpr (Seen == Sight::WINDOW)
            whole = whole && params.scores.window.covers({query, query + 2 * Count}, {key, key + 64});
        if (whole) return;
        Range ranges[2];
        UNROLL
        for (int i = 0; i < 2; ++i) {
            const int own = key + fragment_row() + 8 * i;
            ranges[i] = {0, shape.len_q};
            if constexpr (Seen == Sight::WINDOW) ranges[i] = params.scores.window.rows_of(own, shape.len_q);
            if (own >= shape.len_k) ranges[i].end = 0;
        }
        mask_outside(scores, ranges, query + fragment_column());
    }

    // From scores that have been masked: weights in their place and, where there is no output, what the entropy's
    // gradient asks of them (minus the log of the weight).
    template <int Count>
    DEVICE void weigh(float (&scores)[Count], float (&grad_weights)[Count], float unit, int stage, int query) const {
        for_each_row(scores, LSE, stage, query, [&](int i, float lse) { scores[i] = fmaf(scores[i], unit, -lse); });
        if constexpr (!HasOutput) {
            for_each_row(scores, ENTROPY, stage, query,
                         [&](int i, float gradient) { grad_weights[i] = -LN2 * gradient * fmaxf(scores[i], FAR); });
        }
        UNROLL
        for (int i = 0; i < Count; ++i)
            scores[i] = ptx::exp2_approximate(ptx::min_or_nan(scores[i], 0.0f));  // at most 1
    }

    // A warpgroup's 64 x N accumulators, rounded, into a tile of results, from a row and a column on.
    template <class T, int Count>
    static DEVICE void store_rounded(const float (&gradient)[Count], uint32_t tile, int row, int column) {
        uint32_t packed[Count / 2];
        pack_all<T>(packed, gradient);
        store_packed<Key>(tile, row, packed, column);
    }

    // A square of the queries' gradient: that of the scores (64-wide column `row` of the tile) times the keys.
    template <class T, class GradScores>
    DEVICE void multiply_square(float (&square)[32], uint32_t grad_scores, int number) const {
        const uint64_t a = GradScores::by_width(grad_scores, number / Query::COLUMNS * 64);
        const uint64_t b = Key::by_width(shared + KEY, number % Query::COLUMNS * 64);
        UNROLL
        for (int k = 0; k < KEYS / 16; ++k)
            ptx::Product<T, 64>::template shared<ptx::MN_MAJOR, ptx::MN_MAJOR>(
                square, ptx::advance(a, GradScores::along_rows(k)), ptx::advance(b, Key::along_rows(k)), k > 0);
    }

    // Adds a square to global memory through this group's buffer.
    DEVICE void add_square(const float (&square)[32], uint32_t buffer, int head, int block, int number, int group,
                           bool first_thread) const {
        if (first_thread) ptx::wait_stores_read<0>();
        ptx::named_barrier_sync(GROUP + group, ptx::WARPGROUP);
        const uint32_t own = buffer + ptx::thread_index() % ptx::WARPGROUP * 16;
        UNROLL
        for (int i = 0; i < 8; ++i)
            ptx::store_shared4(own + i * ptx::WARPGROUP * 16,
                               {square[4 * i], square[4 * i + 1], square[4 * i + 2], square[4 * i + 3]});
        ptx::fence_async();
        ptx::named_barrier_sync(GROUP + group, ptx::WARPGROUP);
        if (first_thread) {
            const int64_t tile = static_cast<int64_t>(head) * (params.padded_rows / Rows) + block;
            ptx::add_floats(params.grad_query + (tile * SQUARES + number) * SQUARE, buffer, SQUARE_BYTES);
            ptx::commit_stores();
        }
    }
};

}  // namespace core
