// Softmax attention, backward: gradients of query, key and value in one pass. Each consumer warpgroup owns 64
// keys of a block, whose gradients stay in its registers while blocks of queries pass by. Scores are computed
// transposed, so that weights and their gradients are left operands without leaving the registers; only the
// scores' gradient goes to shared memory, for the query's gradient, which the copy engine adds up in global memory.
//
// Without an output, only lse and entropy have gradients: there is no value, and three products remain of five.
#pragma once
#include "core/extras.h"
#include "core/online_softmax.h"
#include "core/prior.h"
#include "core/ring.h"
#include "core/roles.h"
#include "core/schedule.h"
#include "core/tile.h"
#include "params.h"
#include <ptx/fence.h>
#include <ptx/launch.h>
#include <ptx/memory.h>
#include <ptx/named_barrier.h>

namespace kernels {

// HasExtras: a soft cap, mask or dropout may be there.
template <class T, int Width, int Rows, bool Windowed, bool HasOutput, bool HasExtras>
struct SoftmaxBackward {
    using Params = SoftmaxBackwardParams;
    static constexpr const char* name = "softmax_backward";
    static constexpr int STAGES = 2, GROUPS = 2, KEYS = 64 * GROUPS;
    using Query = core::Tile<Rows, Width>;
    using Key = core::Tile<KEYS, Width>;
    using GradScores = core::Tile<KEYS, Rows>;
    static constexpr int threads = (GROUPS + 1) * ptx::WARPGROUP, blocks_per_multiprocessor = 1;
    static constexpr int PRODUCER_REGISTERS = 24, CONSUMER_REGISTERS = 240;

    // The query's gradient is shared out in 64 x 64 squares: by rows, or by columns where there are only 64 rows.
    static_assert(Rows / 64 * Query::COLUMNS == GROUPS);
    static constexpr int SQUARE = 64 * 64, SQUARE_BYTES = SQUARE * 4;

    // shared memory, from its start
    static constexpr int ROW_BYTES = Rows * 4;
    static constexpr int KEY = 0, VALUE = KEY + Key::BYTES;
    static constexpr int QUERIES = VALUE + HasOutput * Key::BYTES, GRAD_OUTPUTS = QUERIES + STAGES * Query::BYTES;
    static constexpr int GRAD_SCORES = GRAD_OUTPUTS + HasOutput * STAGES * Query::BYTES;
    static constexpr int GRAD_QUERY = GRAD_SCORES + STAGES * GradScores::BYTES;
    static constexpr int LSE = GRAD_QUERY + GROUPS * SQUARE_BYTES, ROW = LSE + STAGES * ROW_BYTES;
    static constexpr int ENTROPY = ROW + STAGES * ROW_BYTES;
    static constexpr int KEY_RING = ENTROPY + STAGES * ROW_BYTES;
    static constexpr int QUERY_RING = KEY_RING + core::RingBarriers<1>::BYTES;
    static constexpr int GRAD_OUTPUT_RING = QUERY_RING + core::RingBarriers<STAGES>::BYTES;
    static constexpr int NUMBER = GRAD_OUTPUT_RING + core::RingBarriers<STAGES>::BYTES;  // of the tile, with its keys
    static constexpr int shared_bytes = NUMBER + 4;
    // results leave through buffers that are free by then, so that the next keys can come in
    static constexpr int GRAD_KEY = GRAD_SCORES, GRAD_VALUE = GRAD_QUERY;
    static_assert(Key::BYTES <= STAGES * GradScores::BYTES && Key::BYTES <= GROUPS * SQUARE_BYTES);

    // named barriers
    static constexpr int ALL_CONSUMERS = 1, GROUP = 2;

    const Params& params;
    uint32_t shared = ptx::shared_memory();
    core::RingBarriers<1> key_ring{shared + KEY_RING};
    core::RingBarriers<STAGES> query_ring{shared + QUERY_RING}, grad_output_ring{shared + GRAD_OUTPUT_RING};

    static DEVICE void run(const Params& params) { core::run_roles(SoftmaxBackward{params}); }

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

    // One block of keys, and the blocks of queries that look at it.
    struct Work {
        int batch, kv_head;
        core::Range keys, blocks;
    };

    DEVICE Work work_of(int number) const {
        const core::Place at = params.tiling[number];
        const Shape& shape = params.shape;
        const int kv_heads = shape.heads / shape.group;
        Work work;
        work.batch = at.head / kv_heads;
        work.kv_head = at.head % kv_heads;
        work.keys = {at.tile * KEYS, at.tile * KEYS + KEYS};
        work.blocks = {0, (shape.len_q + Rows - 1) / Rows};
        if constexpr (Windowed) work.blocks = params.scores.window.query_blocks(work.keys, Rows, shape.len_q);
        return work;
    }

    DEVICE void produce() const {
        const Shape& shape = params.shape;
        core::Ring<1> key_stage;
        core::Ring<STAGES> stage;
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
                    auto load_rows = [&](int place, const float* rows, uint32_t barrier) {
                        ptx::load_bytes(shared + place + stage.stage * ROW_BYTES, rows + at, ROW_BYTES, barrier);
                    };
                    query_ring.begin_fill(stage, Query::BYTES + (HasOutput ? 1 : 3) * ROW_BYTES);
                    Query::load(shared + QUERIES + stage.stage * Query::BYTES, params.query, query_ring.full(stage),
                                row, head, work.batch);
                    load_rows(LSE, params.lse, query_ring.full(stage));
                    if constexpr (HasOutput) {
                        grad_output_ring.begin_fill(stage, Query::BYTES + ROW_BYTES);
                        Query::load(shared + GRAD_OUTPUTS + stage.stage * Query::BYTES, params.grad_output,
                                    grad_output_ring.full(stage), row, head, work.batch);
                        load_rows(ROW, params.row, grad_output_ring.full(stage));
                    } else {
                        load_rows(ROW, params.row, query_ring.full(stage));
                        load_rows(ENTROPY, params.entropy, query_ring.full(stage));
                    }
                    stage.next();
                }
            }
        }
        tell(key_stage, number, 0);
    }

    // Which tile the next keys belong to; the last time, that there are none.
    DEVICE void tell(const core::Ring<1>& stage, int number, int bytes) const {
        key_ring.wait_empty(stage);
        ptx::store_shared_int(shared + NUMBER, number);
        key_ring.announce(stage, bytes);
    }

    DEVICE void consume(int group) const {
        const Shape& shape = params.shape;
        const float unit = HasExtras ? core::LOG2E : params.scores.scale * core::LOG2E;
        const bool first_thread = ptx::thread_index() % ptx::WARPGROUP == 0;
        core::Ring<1> key_stage;
        core::Ring<STAGES> stage;
        for (;; key_stage.next()) {
            key_ring.wait_full(key_stage);
            const int number = ptx::load_shared_int(shared + NUMBER);
            if (number >= params.tiling.total()) break;
            const Work work = work_of(number);
            float grad_key[Width / 2], grad_value[Width / 2], scores[Rows / 2];
            UNROLL
            for (int i = 0; i < Width / 2; ++i) grad_key[i] = grad_value[i] = 0;
            wait_for_buffers(first_thread);  // that the last tile's results leave through

            auto issue_scores = [&](const core::Ring<STAGES>& at) {
                query_ring.wait_full(at);
                ptx::renew(scores);
                ptx::products_fence();
                core::multiply_rows<T, Key, Query>(scores, shared + KEY, group * 64,
                                                   shared + QUERIES + at.stage * Query::BYTES);
                ptx::products_commit();
            };

            issue_scores(stage);
            int head = work.kv_head * shape.group, block = work.blocks.begin;
            for (int left = shape.group * (work.blocks.end - work.blocks.begin); left > 0; --left) {
                const uint32_t query = shared + QUERIES + stage.stage * Query::BYTES;
                const uint32_t grad_output = shared + GRAD_OUTPUTS + stage.stage * Query::BYTES;
                const uint32_t grad_scores = shared + GRAD_SCORES + stage.stage * GradScores::BYTES;
                float grad_weights[Rows / 2];
                uint32_t weights[Rows / 4], packed[Rows / 4];

                if constexpr (HasOutput) grad_output_ring.wait_full(stage);
                ptx::products_wait<0>();
                ptx::pin(scores);
                if constexpr (HasOutput) {
                    ptx::renew(grad_weights);
                    ptx::products_fence();
                    core::multiply_rows<T, Key, Query>(grad_weights, shared + VALUE, group * 64, grad_output);
                    ptx::products_commit();
                }

                const core::Extras<T> extras(params.extras, shape, work.batch, head);
                const int first_query = block * Rows + core::fragment_column();
                uint32_t kept[Rows / 64] = {};  // by dropout
                auto factor = [&](int i) {
                    if constexpr (HasExtras) return extras.drops() ? extras.factor(kept[i / 32] >> i % 32 & 1) : 1.0f;
                    return 1.0f;
                };
                const int first_key = work.keys.begin + group * 64 + core::fragment_row();
                if constexpr (HasExtras) {
                    UNROLL
                    for (int i = 0; i < Rows / 2; ++i)
                        scores[i] = extras.score(scores[i] * params.scores.scale, query_of(first_query, i),
                                                 key_of(first_key, i));
                }
                mask(scores, work, block, group);
                for_each_row(LSE, stage, [&](int i, float lse) { scores[i] = fmaf(scores[i], unit, -lse); });
                if constexpr (!HasOutput) {  // an entropy's gradient: minus the log of the weight
                    for_each_row(ENTROPY, stage, [&](int i, float gradient) {
                        grad_weights[i] = -core::LN2 * gradient * fmaxf(scores[i], core::FAR);
                    });
                }
                UNROLL
                for (int i = 0; i < Rows / 2; ++i)
                    scores[i] = ptx::exp2_approximate(ptx::min_or_nan(scores[i], 0.0f));  // at most 1

                if constexpr (HasOutput) {
                    if constexpr (HasExtras)
                        if (extras.drops()) draw(kept, extras, first_query, first_key);
                    UNROLL
                    for (int i = 0; i < Rows / 2; i += 2)
                        weights[i / 2] = ptx::pack<T>(scores[i] * factor(i), scores[i + 1] * factor(i + 1));
                    ptx::products_wait<0>();
                    ptx::pin(grad_weights);
                    ptx::pin(grad_value);
                    ptx::products_fence();
                    core::multiply_packed<T, Query>(grad_value, weights, grad_output, 1);
                    ptx::products_commit();
                }
                for_each_row(ROW, stage, [&](int i, float row) {
                    grad_weights[i] = scores[i] * (grad_weights[i] * factor(i) - row);
                });
                if constexpr (HasExtras) {
                    const int own_query = ptx::forget(first_query), own_key = ptx::forget(first_key);
                    for_each_row(LSE, stage, [&](int i, float lse) {
                        const int at = query_of(own_query, i), key = key_of(own_key, i);
                        if (extras.options.mask_gradient) extras.add_gradient(grad_weights[i], at, key);
                        if (grad_weights[i] != 0)  // then the weight is not 0, and gives the score
                            grad_weights[i] *=
                                extras.slope((ptx::log2_approximate(scores[i]) + lse) * core::LN2, at, key);
                    });
                }
                core::pack_all<T>(packed, grad_weights);
                core::store_packed<GradScores, Rows>(grad_scores, group * 64, packed);
                ptx::fence_async();
                ptx::named_barrier_sync(ALL_CONSUMERS, GROUPS * ptx::WARPGROUP);

                float grad_query[32];
                ptx::renew(grad_query);
                ptx::pin(grad_key);
                ptx::products_fence();
                multiply_square(grad_query, grad_scores, group);
                ptx::products_commit();
                core::multiply_packed<T, Query>(grad_key, packed, query, 1);
                ptx::products_commit();
                ptx::products_wait<1>();
                ptx::pin(grad_query);
                if constexpr (HasOutput) {
                    ptx::pin(grad_value);
                    if (ptx::lane_index() == 0) grad_output_ring.release(stage);
                }
                add_square(grad_query, work.batch * shape.heads + head, block, group, first_thread);
                // the next scores follow at once; after the last block, the same again for nobody
                core::Ring<STAGES> next = stage;
                if (left > 1) next.next();
                issue_scores(next);
                ptx::products_wait<1>();
                ptx::pin(grad_key);
                if (left > 1 && ptx::lane_index() == 0) query_ring.release(stage);
                stage = next;
                if (++block == work.blocks.end) ++head, block = work.blocks.begin;
            }
            ptx::products_wait<0>();
            if (ptx::lane_index() == 0) {
                query_ring.release(stage);
                key_ring.release(key_stage);
            }
            stage.next();
            UNROLL
            for (int i = 0; i < Width / 2; ++i) grad_key[i] *= params.scores.scale;
            wait_for_buffers(first_thread);  // that the last blocks used
            store(grad_key, shared + GRAD_KEY, group);
            if constexpr (HasOutput) store(grad_value, shared + GRAD_VALUE, group);
            ptx::fence_async();
            ptx::named_barrier_sync(GROUP + group, ptx::WARPGROUP);
            if (first_thread) {
                const int key = work.keys.begin + group * 64;
                if (key < shape.len_k) {
                    Key::store(params.grad_key, shared + GRAD_KEY, group * 64, key, work.kv_head, work.batch);
                    if constexpr (HasOutput)
                        Key::store(params.grad_value, shared + GRAD_VALUE, group * 64, key, work.kv_head, work.batch);
                }
                ptx::commit_stores();
            }
        }
        if (first_thread) ptx::wait_stores<0>();
    }

    // Of register i, given those of register 0.
    static DEVICE int query_of(int first, int i) { return first + i / 4 * 8 + i % 2; }
    static DEVICE int key_of(int first, int i) { return first + i / 2 % 2 * 8; }

    // A bit for every register of 64 x Rows weights that dropout keeps.
    static DEVICE void draw(uint32_t (&kept)[Rows / 64], const core::Extras<T>& extras, int query, int key) {
        UNROLL
        for (int i = 0; i < Rows / 64; ++i) kept[i] = 0;
        UNROLL
        for (int i = 0; i < Rows / 2; i += 4) kept[i / 32] |= extras.kept_by_key(query_of(query, i), key) << i % 32;
    }

    // Calls function(i, value) for every register of 64 x Rows accumulators with the value of its query.
    template <class Function>
    DEVICE void for_each_row(int place, const core::Ring<STAGES>& stage, Function function) const {
        const uint32_t values = shared + place + stage.stage * ROW_BYTES + core::fragment_column() * 4;
        UNROLL
        for (int i = 0; i < Rows / 2; i += 4) {
            const float2 value = ptx::load_shared2(values + i * 8);
            function(i, value.x);
            function(i + 1, value.y);
            function(i + 2, value.x);
            function(i + 3, value.y);
        }
    }

    // Until nobody reads the buffers of the gradients of scores and queries any more.
    DEVICE void wait_for_buffers(bool first_thread) const {
        if (first_thread) ptx::wait_stores_read<0>();
        ptx::named_barrier_sync(ALL_CONSUMERS, GROUPS * ptx::WARPGROUP);
    }

    DEVICE void mask(float (&scores)[Rows / 2], const Work& work, int block, int group) const {
        const Shape& shape = params.shape;
        const core::Range rows = {block * Rows, block * Rows + Rows};
        bool whole = work.keys.end <= shape.len_k;
        if constexpr (Windowed) whole = whole && params.scores.window.covers(rows, work.keys);
        if (whole) return;
        core::Range ranges[2];
        UNROLL
        for (int i = 0; i < 2; ++i) {
            const int key = work.keys.begin + group * 64 + core::fragment_row() + 8 * i;
            ranges[i] = {0, shape.len_q};
            if constexpr (Windowed) ranges[i] = params.scores.window.rows_of(key, shape.len_q);
            if (key >= shape.len_k) ranges[i].end = 0;
        }
        core::mask_outside(scores, ranges, rows.begin + core::fragment_column());
    }

    // This group's square of the gradient of the scores times the keys.
    DEVICE void multiply_square(float (&square)[32], uint32_t grad_scores, int group) const {
        const uint64_t a = GradScores::by_width(grad_scores, Rows == 64 ? 0 : group);
        const uint64_t b = Key::by_width(shared + KEY, Rows == 64 ? group : 0);
        UNROLL
        for (int k = 0; k < KEYS / 16; ++k)
            ptx::Product<T, 64>::template shared<ptx::MN_MAJOR, ptx::MN_MAJOR>(
                square, ptx::advance(a, GradScores::along_rows(k)), ptx::advance(b, Key::along_rows(k)), k > 0);
    }

    // Adds the square to global memory through this group's buffer.
    DEVICE void add_square(const float (&square)[32], int head, int block, int group, bool first_thread) const {
        const uint32_t buffer = shared + GRAD_QUERY + group * SQUARE_BYTES;
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
            ptx::add_floats(params.grad_query + (tile * GROUPS + group) * SQUARE, buffer, SQUARE_BYTES);
            ptx::commit_stores();
        }
    }

    DEVICE void store(const float (&gradient)[Width / 2], uint32_t tile, int group) const {
        uint32_t packed[Width / 4];
        core::pack_all<T>(packed, gradient);
        core::store_packed<Key, Width>(tile, group * 64, packed);
    }
};

}  // namespace kernels
