// Softmax attention, backward: gradients of query, key and value in one pass. Each consumer warpgroup owns 64
// keys of a tile, whose gradients stay in its registers while blocks of queries pass by. Scores are computed
// transposed, so that weights and their gradients are left operands without leaving the registers; only the
// scores' gradient goes to shared memory, for the query's gradient, which the copy engine adds up in global memory.
#pragma once
#include "core/key_tiles.h"
#include "core/roles.h"

namespace kernels {

template <class T, int Width, int Rows, core::Sight Seen, bool HasOutput>
struct SoftmaxBackward : core::KeyTiles<Width, Rows, 128, 2, Seen, HasOutput> {
    using Params = SoftmaxBackwardParams;
    using Base = core::KeyTiles<Width, Rows, 128, 2, Seen, HasOutput>;
    using Base::ALL_CONSUMERS, Base::GROUP, Base::GROUPS, Base::GRAD_OUTPUTS, Base::KEY, Base::KEYS, Base::LSE;
    using Base::grad_output_ring, Base::key_ring, Base::params, Base::query_ring, Base::shared;
    using Base::OWN, Base::QUERIES, Base::ROW, Base::SQUARE_BYTES, Base::STAGES, Base::VALUE;
    using typename Base::Key, typename Base::Query, typename Base::Work;
    using GradScores = core::Tile<KEYS, Rows>;
    static constexpr const char* name = "softmax_backward";
    static_assert(Base::SQUARES == GROUPS);

    static constexpr int GRAD_SCORES = OWN, GRAD_QUERY = GRAD_SCORES + STAGES * GradScores::BYTES;
    static constexpr int shared_bytes = GRAD_QUERY + GROUPS * SQUARE_BYTES;
    // results leave through buffers that are free by then, so that the next keys can come in
    static constexpr int GRAD_KEY = GRAD_SCORES, GRAD_VALUE = GRAD_QUERY;
    static_assert(Key::BYTES <= STAGES * GradScores::BYTES && Key::BYTES <= GROUPS * SQUARE_BYTES);

    using Base::Base;
    static DEVICE void run(const Params& params) { core::run_roles(SoftmaxBackward(params)); }

    DEVICE void consume(int group) const {
        const Shape& shape = params.shape;
        const float unit = params.scores.scale * core::LOG2E;
        const bool first_thread = ptx::thread_index() % ptx::WARPGROUP == 0;
        core::Ring<1> key_stage;
        core::Ring<STAGES> stage;
        for (;; key_stage.next()) {
            const int number = this->meet(key_stage);
            if (number >= params.tiling.total()) break;
            const Work work = this->work_of(number);
            const int first_key = work.keys.begin + group * 64;
            float grad_key[Width / 2], grad_value[Width / 2], scores[Rows / 2];
            UNROLL
            for (int i = 0; i < Width / 2; ++i) grad_key[i] = grad_value[i] = 0;
            this->wait_for_buffers(first_thread);  // that the last tile's results leave through

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
                this->mask(scores, first_key, block * Rows);
                this->weigh(scores, grad_weights, unit, stage.stage, 0);
                if constexpr (HasOutput) {
                    core::pack_all<T>(weights, scores);
                    ptx::products_wait<0>();
                    ptx::pin(grad_weights);
                    ptx::pin(grad_value);
                    ptx::products_fence();
                    core::multiply_packed<T, Query>(grad_value, weights, grad_output, 1);
                    ptx::products_commit();
                }
                this->for_each_row(scores, ROW, stage.stage, 0,
                                   [&](int i, float row) { grad_weights[i] = scores[i] * (grad_weights[i] - row); });
                core::pack_all<T>(packed, grad_weights);
                core::store_packed<GradScores>(grad_scores, group * 64, packed);
                ptx::fence_async();
                ptx::named_barrier_sync(ALL_CONSUMERS, GROUPS * ptx::WARPGROUP);

                float grad_query[32];
                ptx::renew(grad_query);
                ptx::pin(grad_key);
                ptx::products_fence();
                this->template multiply_square<T, GradScores>(grad_query, grad_scores, group);
                ptx::products_commit();
                core::multiply_packed<T, Query>(grad_key, packed, query, 1);
                ptx::products_commit();
                ptx::products_wait<1>();
                ptx::pin(grad_query);
                if constexpr (HasOutput) {
                    ptx::pin(grad_value);
                    if (ptx::lane_index() == 0) grad_output_ring.release(stage);
                }
                this->add_square(grad_query, shared + GRAD_QUERY + group * SQUARE_BYTES,
                                 work.batch * shape.heads + head, block, group, group, first_thread);
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
            this->wait_for_buffers(first_thread);  // that the last blocks used
            this->template store_rounded<T>(grad_key, shared + GRAD_KEY, group * 64, 0);
            if constexpr (HasOutput) this->template store_rounded<T>(grad_value, shared + GRAD_VALUE, group * 64, 0);
            ptx::fence_async();
            ptx::named_barrier_sync(GROUP + group, ptx::WARPGROUP);
            if (first_thread) {
                if (first_key < shape.len_k) {
                    Key::store(params.grad_key, shared + GRAD_KEY, group * 64, first_key, work.kv_head, work.batch);
                    if constexpr (HasOutput)
                        Key::store(params.grad_value, shared + GRAD_VALUE, group * 64, first_key, work.kv_head,
                                   work.batch);
                }
                ptx::commit_stores();
            }
        }
        if (first_thread) ptx::wait_stores<0>();
    }
};

}  // namespace kernels
