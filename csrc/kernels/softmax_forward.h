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

    // One tile of queries, and the blocks of keys that it looks at.
    struct Work {
        int batch, head;
        core::Range rows, blocks;
        core::Window window;
    };

    DEVICE Work work_of(int number) const {
        const core::Place at = params.tiling[number];
        const Shape& shape = params.shape;
        Work work;
        work.batch = at.head / shape.heads;
        work.head = at.head % shape.heads;
        const int end = at.tile * Rows + Rows;
        work.rows = {at.tile * Rows, end < shape.len_q ? end : shape.len_q};
        work.blocks = {0, (shape.len_k + Keys - 1) / Keys};
        if constexpr (Windowed) {
            work.window = params.scores.window_of(work.batch);
            work.blocks = work.window.key_blocks(work.rows, Keys, shape.len_k);
        }
        return work;
    }

    DEVICE void produce() const {
        core::Ring<STAGES> key_stage, value_stage;
        core::Ring<QUERY_STAGES> query_stage;
        int number = ptx::block_index();
        while (number < params.tiling.total()) {
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
            tell(query_stage, number, Query::BYTES);
            number = params.tiling.next();
            Query::load(shared + QUERIES + query_stage.stage * Query::BYTES, params.query, query_ring.full(query_stage), work.rows.begin, work.head,
                        work.batch);
            query_stage.next();
            if (work.blocks.empty()) continue;
            load_key(work.blocks.end - 1);
            for (int block = work.blocks.end - 2; block >= work.blocks.begin; --block) {
                load_key(block);
                load_value(block + 1);
            }
            load_value(work.blocks.begin);
        }
        tell(query_stage, number, 0);
    }

    // Which tile the next query belongs to; the last time, that there is none.
    DEVICE void tell(const core::Ring<QUERY_STAGES>& stage, int number, int bytes) const {
        query_ring.wait_empty(stage);
        ptx::store_shared_int(shared + NUMBERS + 4 * stage.stage, number);
        query_ring.announce(stage, bytes);
    }

    DEVICE void consume(int group) const {
        core::Ring<STAGES> key_stage, value_stage;
        core::Ring<QUERY_STAGES> query_stage;
        core::Turns<GROUPS, TURNS> turns(group);
        for (;; query_stage.next()) {
            query_ring.wait_full(query_stage);
            const int number = ptx::load_shared_int(shared + NUMBERS + 4 * query_stage.stage);
            if (number >= params.tiling.total()) break;
            const Work work = work_of(number);
            const uint32_t query = shared + QUERIES + query_stage.stage * Query::BYTES;
            const int row = work.rows.begin + group * 64 + core::fragment_row();
            core::OnlineSoftmax softmax{params.scores.scale * core::LOG2E};
            float output[Width / 2], scores[Keys / 2], shrink[2];
            uint32_t weights[Keys / 4];

            auto issue_scores = [&] {
                key_ring.wait_full(key_stage);
                ptx::pin(scores);
                ptx::products_fence();
                core::multiply_rows<T, Query, Key>(scores, query, group * 64,
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

            UNROLL
            for (int i = 0; i < Width / 2; ++i) output[i] = 0;
            if (!work.blocks.empty()) {
                issue_scores();
                ptx::products_wait<0>();
                ptx::pin(scores);
                release(key_ring, key_stage);
                mask(scores, work, work.blocks.end - 1, row);
                softmax.update(scores, shrink);
                core::pack_all<T>(weights, scores);
                for (int block = work.blocks.end - 2; block >= work.blocks.begin; --block) {
                    turns.wait();
                    issue_scores();
                    issue_output(block + 2 < work.blocks.end);
                    turns.pass();
                    ptx::products_wait<1>();
                    ptx::pin(scores);
                    release(key_ring, key_stage);
                    mask(scores, work, block, row);
                    const bool shrinks = softmax.update(scores, shrink);
                    ptx::products_wait<0>();
                    ptx::pin(output);
                    release(value_ring, value_stage);
                    if (shrinks) core::scale_rows(output, shrink);
                    core::pack_all<T>(weights, scores);
                }
                issue_output(work.blocks.begin + 1 < work.blocks.end);
                ptx::products_wait<0>();
                ptx::pin(output);
                release(value_ring, value_stage);
            }
            store(output, softmax, work, query, group, row);
            if (ptx::thread_index() % ptx::WARPGROUP == 0) query_ring.release(query_stage);
        }
        if (group == 0) turns.wait();  // for the turn that nobody takes
        if (ptx::thread_index() % ptx::WARPGROUP == 0) ptx::wait_stores<0>();
    }

    DEVICE void mask(float (&scores)[Keys / 2], const Work& work, int block, int row) const {
        const core::Range keys = {block * Keys, block * Keys + Keys};
        const int len_k = params.shape.len_k, first = keys.begin + core::fragment_column();
        if constexpr (Windowed) {
            if (keys.end > len_k || !work.window.covers(work.rows, keys)) {
                const core::Range ranges[2] = {work.window.keys_of(row, len_k), work.window.keys_of(row + 8, len_k)};
                core::mask_outside(scores, ranges, first);
            }
        } else if (keys.end > len_k) {
            const core::Range ranges[2] = {{0, len_k}, {0, len_k}};
            core::mask_outside(scores, ranges, first);
        }
    }

    // Through the rows of the query's tile that only this warpgroup reads, and is done with. Returns when the
    // warpgroup's first thread may let the next query in.
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
            ptx::wait_stores_read<0>();
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
