// Softmax attention, forward: output and lse. Within a warpgroup the product of one block's weights with the values
// runs beside the next block's scores; between warpgroups one computes its softmax while another multiplies (Shah et
// al. 2024, arXiv 2407.08608). Blocks of keys go from last to first, so that the ragged end comes first.
#pragma once
#include "core/extras.h"
#include "core/online_softmax.h"
#include "core/query_tiles.h"
#include "core/roles.h"
#include "core/turns.h"
#include <ptx/fence.h>
#include <ptx/launch.h>

namespace kernels {

// HasExtras: a soft cap, mask or dropout may be there; with learned centres a soft cap.
template <class T, int Width, int Rows, int Keys, core::Sight Seen, bool HasExtras>
struct SoftmaxForward : core::QueryTiles<Width, Rows, Keys, 2, true, true, Seen> {
    using Params = SoftmaxForwardParams;
    using Base = core::QueryTiles<Width, Rows, Keys, 2, true, true, Seen>;
    using Base::GROUPS, Base::QUERIES, Base::QUERY_STAGES, Base::VALUES;
    using Base::key_ring, Base::query_ring, Base::shared, Base::value_ring;
    using typename Base::Key, typename Base::Query, typename Base::Work;
    static constexpr const char* name = "softmax_forward";

    // named barriers
    static constexpr int TURNS = 1, STORES = TURNS + GROUPS;

    const Params& params;

    DEVICE explicit SoftmaxForward(const Params& params) : Base(params), params(params) {}

    static DEVICE void run(const Params& params) { core::run_roles(SoftmaxForward(params)); }

    DEVICE void consume(int group) const {
        const bool first_thread = ptx::thread_index() % ptx::WARPGROUP == 0;
        core::Ring<2> key_stage, value_stage;
        core::Ring<QUERY_STAGES> query_stage;
        bool leaves = false;  // whether an output is on its way out, through the stage before
        core::Turns<GROUPS, TURNS> turns(group);
        float output[Width / 2], scores[Keys / 2], shrink[2];
        uint32_t weights[Keys / 4];

        auto issue_scores = [&] { this->template issue_scores<T>(scores, query_stage, key_stage, group); };
        auto issue_output = [&](int accumulate) {
            value_ring.wait_full(value_stage);
            ptx::pin(output);
            ptx::products_fence();
            core::multiply_packed<T, Key>(output, weights, shared + VALUES + value_stage.stage * Key::BYTES,
                                          accumulate);
            ptx::products_commit();
        };
        auto let_go = [&] {  // of the query whose output has left
            if (leaves && first_thread) ptx::wait_stores_read<0>();
            ptx::warp_sync();
            if (leaves && ptx::lane_index() == 0) query_ring.release(query_stage.previous());
        };

        Work work = this->meet(query_stage);  // a block always has one
        issue_scores();
        for (;;) {
            const Work now = work;
            const int row = now.rows.begin + group * 64 + core::fragment_row();
            core::OnlineSoftmax softmax{HasExtras ? core::LOG2E : params.scores.scale * core::LOG2E};
            ptx::products_wait<0>();
            ptx::pin(scores);
            this->release(key_ring, key_stage);
            see(scores, now, 0, row);
            softmax.update(scores, shrink);
            drop(scores, now, 0, row);
            core::pack_all<T>(weights, scores);
            if constexpr (QUERY_STAGES > 1) let_go();
            for (int step = 1; step < now.count(); ++step) {
                turns.wait();
                issue_scores();
                issue_output(step > 1);
                turns.pass();
                ptx::products_wait<1>();
                ptx::pin(scores);
                this->release(key_ring, key_stage);
                see(scores, now, step, row);
                const bool shrinks = softmax.update(scores, shrink);
                drop(scores, now, step, row);
                ptx::products_wait<0>();
                ptx::pin(output);
                this->release(value_ring, value_stage);
                if (shrinks) core::scale_rows(output, shrink);
                core::pack_all<T>(weights, scores);
            }
            issue_output(now.count() > 1);
            query_stage.next();
            leaves = true;
            auto finish = [&] {
                ptx::pin(output);
                this->release(value_ring, value_stage);
                store(output, softmax, now, shared + QUERIES + query_stage.previous().stage * Query::BYTES, group, row);
            };
            if constexpr (QUERY_STAGES == 1) {  // the next query needs this one's place
                ptx::products_wait<0>();
                finish();
                let_go();
            }
            work = this->meet(query_stage);
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

    // From products to scores, -inf where a query does not look.
    DEVICE void see(float (&scores)[Keys / 2], const Work& work, int step, int row) const {
        if constexpr (HasExtras) {
            const core::Extras<T> extras(params.extras, params.shape, work.batch, work.head);
            const int key = ptx::forget(work.block(step) * Keys + core::fragment_column());
            if constexpr (Seen == core::Sight::CENTERS) {
                const core::Around around = around_of(work);
                around.for_each_by_query(scores, row, key, [&](int i, const core::Center& center, int own) {
                    scores[i] = extras.capped(scores[i] * params.scores.scale);
                    if (around.inside()) scores[i] += around.bias(center, own);
                });
            } else {
                UNROLL
                for (int i = 0; i < Keys / 2; ++i)
                    scores[i] =
                        extras.score(scores[i] * params.scores.scale, row + i / 2 % 2 * 8, key + i / 4 * 8 + i % 2);
            }
        }
        this->mask(scores, work, work.block(step), row);
    }

    // What comes between the softmax and the values.
    DEVICE void drop(float (&weights)[Keys / 2], const Work& work, int step, int row) const {
        if constexpr (HasExtras) {
            const int key = work.block(step) * Keys + core::fragment_column();
            if constexpr (Seen == core::Sight::CENTERS) {
                const core::Around around = around_of(work);
                if (around.after())
                    around.for_each_by_query(weights, row, key, [&](int i, const core::Center& center, int own) {
                        weights[i] *= around.factor(center, own);
                    });
            } else {
                const core::Extras<T> extras(params.extras, params.shape, work.batch, work.head);
                if (extras.drops()) extras.drop_by_query(weights, row, key);
            }
        }
    }

    DEVICE core::Around around_of(const Work& work) const {
        return {params.scores.centers, work.batch * params.shape.heads + work.head, params.shape.len_q};
    }

    // Through the rows of the query's tile that only this warpgroup reads, and is done with.
    DEVICE void store(float (&output)[Width / 2], core::OnlineSoftmax& softmax, const Work& work, uint32_t query,
                      int group, int row) const {
        const Shape& shape = params.shape;
        float scale[2], lse[2];
        softmax.finish(scale, lse);
        core::scale_rows(output, scale);
        uint32_t packed[Width / 4];
        core::pack_all<T>(packed, output);
        const int first = work.rows.begin + group * 64;
        core::store_packed<Query>(query, group * 64, packed);
        ptx::fence_async();
        ptx::named_barrier_sync(STORES + group, ptx::WARPGROUP);
        if (ptx::thread_index() % ptx::WARPGROUP == 0) {
            if (first < shape.len_q) Query::store(params.output, query, group * 64, first, work.head, work.batch);
            ptx::commit_stores();
        }
        if (ptx::lane_index() % 4 == 0) {
            const int64_t head_row = (static_cast<int64_t>(work.batch) * shape.heads + work.head) * shape.len_q;
            UNROLL
            for (int i = 0; i < 2; ++i)
                if (row + 8 * i < shape.len_q) ptx::store_global(params.lse + head_row + row + 8 * i, lse[i]);
        }
    }
};

}  // namespace kernels
