// Softmax attention, forward: output and lse. One producer warp copies tiles in, each consumer warpgroup owns 64
// rows of queries. Within a warpgroup the product of one block's weights with the values runs beside the next
// block's scores; between warpgroups one computes its softmax while another multiplies (Shah et al. 2024,
// arXiv 2407.08608). Blocks of keys go from last to first, so that the ragged end comes first.
#pragma once
#include "core/online_softmax.h"
#include "core/prior.h"
#include "core/ring.h"
#include "core/schedule.h"
#include "core/tile.h"
#include "core/turns.h"
#include "params.h"
#include <ptx/fence.h>
#include <ptx/launch.h>
#include <ptx/memory.h>
#include <ptx/named_barrier.h>
#include <ptx/registers.h>

namespace kernels {

template <class T, int Width, int Rows, int Keys, bool Windowed>
struct SoftmaxForward {
    using Params = SoftmaxForwardParams;
    using Query = core::Tile<Rows, Width>;
    using Key = core::Tile<Keys, Width>;
    static constexpr const char* name = "softmax_forward";
    static constexpr int STAGES = 2, GROUPS = Rows / 64;
    static constexpr int threads = (GROUPS + 1) * ptx::WARPGROUP, blocks_per_multiprocessor = 1;
    static constexpr int PRODUCER_REGISTERS = GROUPS == 2 ? 40 : 32, CONSUMER_REGISTERS = GROUPS == 2 ? 232 : 160;

    // shared memory, from its start; a second query where there is room, so that the next one is there in time
    static constexpr int ROOM = ptx::SHARED_MEMORY - 2 * STAGES * Key::BYTES - 256;
    static constexpr int QUERY_STAGES = 2 * Query::BYTES <= ROOM ? 2 : 1;
    static constexpr int QUERIES = 0, KEYS = QUERIES + QUERY_STAGES * Query::BYTES;
    static constexpr int VALUES = KEYS + STAGES * Key::BYTES;
    static constexpr int KEY_RING = VALUES + STAGES * Key::BYTES;
    static constexpr int VALUE_RING = KEY_RING + core::RingBarriers<STAGES>::BYTES;
    static constexpr int QUERY_RING = VALUE_RING + core::RingBarriers<STAGES>::BYTES;
    static constexpr int NUMBERS = QUERY_RING + core::RingBarriers<QUERY_STAGES>::BYTES;  // of tiles, with the queries
    static constexpr int shared_bytes = NUMBERS + QUERY_STAGES * 4;

    // named barriers
    static constexpr int TURNS = 1, STORES = TURNS + GROUPS;

    const Params& params;
    uint32_t shared = ptx::shared_memory();
    core::RingBarriers<STAGES> key_ring{shared + KEY_RING}, value_ring{shared + VALUE_RING};
    core::RingBarriers<QUERY_STAGES> query_ring{shared + QUERY_RING};

    static DEVICE void run(const Params& params) {
        SoftmaxForward kernel{params};
        if (ptx::thread_index() == 0) {
            kernel.key_ring.init(4 * GROUPS);  // a lane of each warp
            kernel.value_ring.init(4 * GROUPS);
            kernel.query_ring.init(GROUPS);
            ptx::fence_barrier_init();
        }
        ptx::block_sync();
        if (ptx::warpgroup_index() == 0) {
            ptx::give_registers<PRODUCER_REGISTERS>();
            if (ptx::warp_index() == 0 && ptx::elect()) kernel.produce();
        } else {
            ptx::take_registers<CONSUMER_REGISTERS>();
            kernel.consume(ptx::warpgroup_index() - 1);
        }
    }

    // One tile of queries, and the blocks of keys that it looks at. After the last tile comes one that does not exist:
    // the matrix unit is fed as for the others, and nobody looks at the result.
    struct Work {
        bool exists;
        int batch, head;
        core::Range rows, blocks;
    };

    DEVICE Work work_of(int number) const {
        const Shape& shape = params.shape;
        Work work;
        work.exists = number < params.tiling.total();
        const core::Place at = params.tiling[work.exists ? number : 0];
        work.batch = at.head / shape.heads;
        work.head = at.head % shape.heads;
        const int end = at.tile * Rows + Rows;
        work.rows = {at.tile * Rows, end < shape.len_q ? end : shape.len_q};
        work.blocks = {0, (shape.len_k + Keys - 1) / Keys};
        if constexpr (Windowed) {
            work.blocks = params.scores.window.key_blocks(work.rows, Keys, shape.len_k);
            if (work.blocks.empty()) ++work.blocks.end;  // all of whose keys are hidden
        }
        return work;
    }

    DEVICE void produce() const {
        core::Ring<STAGES> key_stage, value_stage;
        core::Ring<QUERY_STAGES> query_stage;
        for (int number = ptx::block_index();;) {
            const Work work = work_of(number);
            const int kv_head = work.head / params.shape.group;
            auto load_key = [&](int block) {
                key_ring.begin_fill(key_stage, Key::BYTES);
                Key::load(shared + KEYS + key_stage.stage * Key::BYTES, params.key, key_ring.full(key_stage), block * Keys,
                          kv_head, work.batch);
                key_stage.next();
            };
            auto load_value = [&](int block) {
                value_ring.begin_fill(value_stage, Key::BYTES);
                Key::load(shared + VALUES + value_stage.stage * Key::BYTES, params.value, value_ring.full(value_stage),
                          block * Keys, kv_head, work.batch);
                value_stage.next();
            };
            query_ring.wait_empty(query_stage);
            ptx::store_shared_int(shared + NUMBERS + 4 * query_stage.stage, number);
            query_ring.announce(query_stage, Query::BYTES);
            Query::load(shared + QUERIES + query_stage.stage * Query::BYTES, params.query,
                        query_ring.full(query_stage), work.rows.begin, work.head, work.batch);
            query_stage.next();
            load_key(work.blocks.end - 1);
            if (!work.exists) break;
            number = params.tiling.next();
            for (int block = work.blocks.end - 2; block >= work.blocks.begin; --block) {
                load_key(block);
                load_value(block + 1);
            }
            load_value(work.blocks.begin);
        }
    }

    // Waits for a query, to learn its tile.
    DEVICE Work meet(const core::Ring<QUERY_STAGES>& stage) const {
        query_ring.wait_full(stage);
        return work_of(ptx::load_shared_int(shared + NUMBERS + 4 * stage.stage));
    }

    DEVICE void consume(int group) const {
        const bool first_thread = ptx::thread_index() % ptx::WARPGROUP == 0;
        core::Ring<STAGES> key_stage, value_stage;
        core::Ring<QUERY_STAGES> query_stage, leaving;  // `leaving`: whose output is on its way out
        bool leaves = false;
        core::Turns<GROUPS, TURNS> turns(group);
        float output[Width / 2], scores[Keys / 2], shrink[2];
        uint32_t weights[Keys / 4];

        auto issue_scores = [&] {
            key_ring.wait_full(key_stage);
            ptx::renew(scores);
            ptx::products_fence();
            core::multiply_rows<T, Query, Key>(scores, shared + QUERIES + query_stage.stage * Query::BYTES, group * 64,
                                               shared + KEYS + key_stage.stage * Key::BYTES);
            ptx::products_commit();
        };
        auto issue_output = [&](int accumulate) {
            value_ring.wait_full(value_stage);
            ptx::pin(output);
            ptx::products_fence();
            core::multiply_packed<T, Key>(output, weights, shared + VALUES + value_stage.stage * Key::BYTES, accumulate);
            ptx::products_commit();
        };
        auto release = [&](const core::RingBarriers<STAGES>& ring, core::Ring<STAGES>& stage) {
            if (ptx::lane_index() == 0) ring.release(stage);
            stage.next();
        };
        auto let_go = [&] {  // of the query whose output has left
            if (leaves && first_thread) {
                ptx::wait_stores_read<0>();
                query_ring.release(leaving);
            }
        };

        Work work = meet(query_stage);  // a block always has one
        issue_scores();
        for (;;) {
            const Work now = work;
            const int row = now.rows.begin + group * 64 + core::fragment_row();
            core::OnlineSoftmax softmax{params.scores.scale * core::LOG2E};
            ptx::products_wait<0>();
            ptx::pin(scores);
            release(key_ring, key_stage);
            mask(scores, now, now.blocks.end - 1, row);
            softmax.update(scores, shrink);
            core::pack_all<T>(weights, scores);
            if constexpr (QUERY_STAGES > 1) let_go();
            for (int block = now.blocks.end - 2; block >= now.blocks.begin; --block) {
                turns.wait();
                issue_scores();
                issue_output(block + 2 < now.blocks.end);
                turns.pass();
                ptx::products_wait<1>();
                ptx::pin(scores);
                release(key_ring, key_stage);
                mask(scores, now, block, row);
                const bool shrinks = softmax.update(scores, shrink);
                ptx::products_wait<0>();
                ptx::pin(output);
                release(value_ring, value_stage);
                if (shrinks) core::scale_rows(output, shrink);
                core::pack_all<T>(weights, scores);
            }
            issue_output(now.blocks.begin + 1 < now.blocks.end);
            leaving = query_stage;
            leaves = true;
            query_stage.next();
            auto finish = [&] {
                ptx::pin(output);
                release(value_ring, value_stage);
                store(output, softmax, now, shared + QUERIES + leaving.stage * Query::BYTES, group, row);
            };
            if constexpr (QUERY_STAGES == 1) {  // the next query needs this one's place
                ptx::products_wait<0>();
                finish();
                let_go();
            }
            work = meet(query_stage);
            issue_scores();
            if constexpr (QUERY_STAGES > 1) {  // the next tile's first scores run beside this one's end
                ptx::products_wait<1>();
                finish();
            }
            if (!work.exists) break;
        }
        ptx::products_wait<0>();
        if (group == 0) turns.wait();  // for the turn that nobody takes
        if (first_thread) ptx::wait_stores<0>();
    }

    DEVICE void mask(float (&scores)[Keys / 2], const Work& work, int block, int row) const {
        const core::Range keys = {block * Keys, block * Keys + Keys};
        const int len_k = params.shape.len_k, first = keys.begin + core::fragment_column();
        if constexpr (Windowed) {
            if (keys.end > len_k || !params.scores.window.covers(work.rows, keys)) {
                const core::Range ranges[2] = {params.scores.window.keys_of(row, len_k), params.scores.window.keys_of(row + 8, len_k)};
                core::mask_outside(scores, ranges, first);
            }
        } else if (keys.end > len_k) {
            const core::Range ranges[2] = {{0, len_k}, {0, len_k}};
            core::mask_outside(scores, ranges, first);
        }
    }

    // Through the rows of the query's tile that only this warpgroup reads, and is done with.
    DEVICE void store(float (&output)[Width / 2], core::OnlineSoftmax& softmax, const Work& work, uint32_t query,
                      int group, int row) const {
        float scale[2], lse[2];
        softmax.finish(scale, lse);
        core::scale_rows(output, scale);
        uint32_t packed[Width / 4];
        core::pack_all<T>(packed, output);
        const int first = work.rows.begin + group * 64;
        core::store_packed<Query, Width>(query, group * 64, packed);
        ptx::fence_async();
        ptx::named_barrier_sync(STORES + group, ptx::WARPGROUP);
        if (ptx::thread_index() % ptx::WARPGROUP == 0) {
            if (first < params.shape.len_q)
                Query::store(params.output, query, group * 64, first, work.head, work.batch);
            ptx::commit_stores();
        }
        if (ptx::lane_index() % 4 == 0) {
            const int64_t head_row = (static_cast<int64_t>(work.batch) * params.shape.heads + work.head) * params.shape.len_q;
            UNROLL
            for (int i = 0; i < 2; ++i)
                if (row + 8 * i < params.shape.len_q) ptx::store_global(params.lse + head_row + row + 8 * i, lse[i]);
        }
    }
};

}  // namespace kernels
