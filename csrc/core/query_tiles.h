// A persistent block that holds a tile of queries while the blocks of keys that it looks at pass by, and of values if
// there are any: one producer warp copies them in, each consumer warpgroup owns 64 rows.
#pragma once
#include "core/prior.h"
#include "core/ring.h"
#include "core/schedule.h"
#include "core/tile.h"
#include "params.h"
#include <ptx/memory.h>
#include <ptx/named_barrier.h>
#include <ptx/shuffle.h>

namespace core {

// KeyStages x Keys rows of keys, and as many of values if HasValues. Backwards: the last block of keys comes first.
template <int Width, int Rows, int Keys, int KeyStages, bool HasValues, bool Backwards, Sight Seen>
struct QueryTiles {
    using Query = Tile<Rows, Width>;
    using Key = Tile<Keys, Width>;
    static constexpr int GROUPS = Rows / 64;
    static constexpr int threads = (GROUPS + 1) * ptx::WARPGROUP, blocks_per_multiprocessor = 1;
    static constexpr int PRODUCER_REGISTERS = GROUPS == 2 ? 40 : 32, CONSUMER_REGISTERS = GROUPS == 2 ? 232 : 160;

    // shared memory, from its start; a second query where there is room, so that the next one is there in time
    static constexpr int KEY_BYTES = KeyStages * Key::BYTES, VALUE_BYTES = HasValues ? KEY_BYTES : 0;
    static constexpr int QUERY_STAGES = 2 * Query::BYTES + KEY_BYTES + VALUE_BYTES + 256 <= ptx::SHARED_MEMORY ? 2 : 1;
    static constexpr int QUERIES = 0, KEYS = QUERIES + QUERY_STAGES * Query::BYTES;
    static constexpr int VALUES = KEYS + KEY_BYTES, KEY_RING = VALUES + VALUE_BYTES;
    static constexpr int VALUE_RING = KEY_RING + RingBarriers<KeyStages>::BYTES;
    static constexpr int QUERY_RING = VALUE_RING + RingBarriers<KeyStages>::BYTES;
    static constexpr int NUMBERS = QUERY_RING + RingBarriers<QUERY_STAGES>::BYTES;  // of tiles, with the queries
    static constexpr int shared_bytes = NUMBERS + QUERY_STAGES * 4;

    const ForwardParams& params;
    uint32_t shared = ptx::shared_memory();
    RingBarriers<KeyStages> key_ring{shared + KEY_RING}, value_ring{shared + VALUE_RING};
    RingBarriers<QUERY_STAGES> query_ring{shared + QUERY_RING};

    DEVICE explicit QueryTiles(const ForwardParams& params) : params(params) {}

    // Consumers give a stage back by a lane of each warp.
    DEVICE void init_rings() const {
        if (ptx::thread_index() == 0) {
            key_ring.init(4 * GROUPS);
            if (HasValues) value_ring.init(4 * GROUPS);
            query_ring.init(4 * GROUPS);
            ptx::fence_barrier_init();
        }
        ptx::block_sync();
    }

    // One tile of queries, and the blocks of keys that it looks at. After the last tile comes one that does not exist:
    // its query and first keys come as for the others, and nobody looks at the result.
    struct Work {
        bool exists;
        int batch, head;
        Range rows, blocks;

        DEVICE int count() const { return blocks.end - blocks.begin; }
        DEVICE int block(int step) const { return Backwards ? blocks.end - 1 - step : blocks.begin + step; }
    };

    DEVICE Work work_of(int number) const {
        const Shape& shape = params.shape;
        Work work;
        work.exists = number < params.tiling.total();
        const Place at = params.tiling[work.exists ? number : 0];
        work.batch = at.head / shape.heads;
        work.head = at.head % shape.heads;
        const int end = at.tile * Rows + Rows;
        work.rows = {at.tile * Rows, end < shape.len_q ? end : shape.len_q};
        work.blocks = {0, (shape.len_k + Keys - 1) / Keys};
        if constexpr (Seen == Sight::CENTERS)
            work.blocks = ptx::load_global(params.scores.centers.blocks + at.head * params.tiling.tiles + at.tile);
        if constexpr (Seen == Sight::WINDOW) {
            work.blocks = params.scores.window.key_blocks(work.rows, Keys, shape.len_k);
            if (work.blocks.empty()) ++work.blocks.end;  // all of whose keys are hidden
        }
        return work;
    }

    DEVICE void produce() const {
        Ring<KeyStages> key_stage, value_stage;
        Ring<QUERY_STAGES> query_stage;
        for (int number = ptx::block_index();;) {
            const Work work = work_of(number);
            const int batch = work.batch % params.shape.batch, kv_head = work.head / params.shape.group;
            auto load_key = [&](int step) {
                key_ring.begin_fill(key_stage, Key::BYTES);
                Key::load(shared + KEYS + key_stage.stage * Key::BYTES, params.key, key_ring.full(key_stage),
                          work.block(step) * Keys, kv_head, batch);
                key_stage.next();
            };
            auto load_value = [&](int step) {
                value_ring.begin_fill(value_stage, Key::BYTES);
                Key::load(shared + VALUES + value_stage.stage * Key::BYTES, params.value, value_ring.full(value_stage),
                          work.block(step) * Keys, kv_head, batch);
                value_stage.next();
            };
            query_ring.wait_empty(query_stage);
            ptx::store_shared_int(shared + NUMBERS + 4 * query_stage.stage, number);
            query_ring.announce(query_stage, Query::BYTES);
            Query::load(shared + QUERIES + query_stage.stage * Query::BYTES, params.query, query_ring.full(query_stage),
                        work.rows.begin, work.head, batch);
            query_stage.next();
            load_key(0);
            if (!work.exists) break;
            number = params.tiling.next();
            NO_UNROLL
            for (int step = 1; step < work.count(); ++step) {
                load_key(step);
                if constexpr (HasValues) load_value(step - 1);
            }
            if constexpr (HasValues) load_value(work.count() - 1);
        }
    }

    // Consumers: waits for a query, to learn its tile.
    DEVICE Work meet(const Ring<QUERY_STAGES>& stage) const {
        query_ring.wait_full(stage);
        return work_of(ptx::load_shared_int(shared + NUMBERS + 4 * stage.stage));
    }

    // Starts the product of a warpgroup's rows with the keys of a stage.
    template <class T>
    DEVICE void issue_scores(float (&scores)[Keys / 2], const Ring<QUERY_STAGES>& query_stage,
                             const Ring<KeyStages>& key_stage, int group) const {
        key_ring.wait_full(key_stage);
        ptx::renew(scores);
        ptx::products_fence();
        multiply_rows<T, Query, Key>(scores, shared + QUERIES + query_stage.stage * Query::BYTES, group * 64,
                                     shared + KEYS + key_stage.stage * Key::BYTES);
        ptx::products_commit();
    }

    template <int Stages>
    static DEVICE void release(const RingBarriers<Stages>& ring, Ring<Stages>& stage) {
        if (ptx::lane_index() == 0) ring.release(stage);
        stage.next();
    }

    // Hides the scores of keys that a row does not look at. `row` is the lane's first.
    DEVICE void mask(float (&scores)[Keys / 2], const Work& work, int block, int row) const {
        const Range keys = {block * Keys, block * Keys + Keys};
        const int len_k = params.shape.len_k, first = keys.begin + fragment_column();
        if constexpr (Seen == Sight::CENTERS) {
            const Around around(params.scores.centers, work.batch * params.shape.heads + work.head, params.shape.len_q);
            const Range ranges[2] = {around.sight_of(row), around.sight_of(row + 8)};
            mask_outside(scores, ranges, first);
        } else if constexpr (Seen == Sight::WINDOW) {
            const Window& window = params.scores.window;
            if (keys.end > len_k || !window.covers(work.rows, keys)) {
                const Range ranges[2] = {window.keys_of(row, len_k), window.keys_of(row + 8, len_k)};
                mask_outside(scores, ranges, first);
            }
        } else if (keys.end > len_k) {
            const Range ranges[2] = {{0, len_k}, {0, len_k}};
            mask_outside(scores, ranges, first);
        }
    }
};

}  // namespace core
