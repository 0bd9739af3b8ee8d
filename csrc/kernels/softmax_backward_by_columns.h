// Softmax attention, backward, for wide heads and for masks, soft caps and dropout: gradients of query, key and value in
// one pass. Both consumer warpgroups share 64 keys, and each owns half of the columns of their gradients. Each makes the
// weights of half of a block's queries, which the other one reads from shared memory: that leaves registers.
#pragma once
#include "core/extras.h"
#include "core/key_tiles.h"
#include "core/roles.h"

namespace kernels {

// HasExtras: a soft cap, mask or dropout may be there; with learned centres a soft cap.
template <class T, int Width, int Rows, core::Sight Seen, bool HasOutput, bool HasExtras>
struct SoftmaxBackwardByColumns
    : core::KeyTiles<Width, Rows, 64, 1, Seen, HasOutput, HasExtras && Seen == core::Sight::WINDOW> {
    using Params = SoftmaxBackwardParams;
    static constexpr bool HAS_BASE = HasExtras && Seen == core::Sight::WINDOW;  // with learned centres is no mask
    using Base = core::KeyTiles<Width, Rows, 64, 1, Seen, HasOutput, HAS_BASE>;
    using Base::ALL_CONSUMERS, Base::GROUP, Base::GROUPS, Base::GRAD_OUTPUTS, Base::KEY, Base::KEYS, Base::LSE;
    using Base::grad_output_ring, Base::key_ring, Base::params, Base::query_ring, Base::shared;
    using Base::OWN, Base::QUERIES, Base::ROW, Base::SQUARE_BYTES, Base::SQUARES, Base::STAGES, Base::VALUE;
    using typename Base::Key, typename Base::Query, typename Base::Work;
    using Weights = core::Tile<KEYS, Rows>;  // and the gradients of scores
    static constexpr const char* name = "softmax_backward_by_columns";
    static constexpr bool CENTERED = Seen == core::Sight::CENTERS;
    static constexpr int OWN_ROWS = Rows / 2, OWN_WIDTH = Width / 2, OWN_SQUARES = SQUARES / GROUPS;

    // results leave through buffers that are free by then, so that the next keys can come in
    static constexpr int WEIGHTS = OWN, GRAD_SCORES = WEIGHTS + Weights::BYTES, GRAD_KEY = WEIGHTS;
    static constexpr int GRAD_QUERY = WEIGHTS + (2 * Weights::BYTES > Key::BYTES ? 2 * Weights::BYTES : Key::BYTES);
    static constexpr int GRAD_VALUE = GRAD_QUERY, shared_bytes = GRAD_QUERY + GROUPS * SQUARE_BYTES;
    static_assert(Key::BYTES <= GROUPS * SQUARE_BYTES);

    using Base::Base;
    static DEVICE void run(const Params& params) { core::run_roles(SoftmaxBackwardByColumns(params)); }

    DEVICE void consume(int group) const {
        const Shape& shape = params.shape;
        const float unit = HasExtras ? core::LOG2E : params.scores.scale * core::LOG2E;
        const bool first_thread = ptx::thread_index() % ptx::WARPGROUP == 0;
        const int own_row = group * OWN_ROWS, own_column = group * OWN_WIDTH;
        core::Ring<1> key_stage, grad_output_stage;
        core::Ring<STAGES> stage;
        for (;; key_stage.next()) {
            const int number = this->meet(key_stage);
            if (number >= params.tiling.total()) break;
            const Work work = this->work_of(number);
            float grad_key[OWN_WIDTH / 2], grad_value[OWN_WIDTH / 2], scores[OWN_ROWS / 2];
            UNROLL
            for (int i = 0; i < OWN_WIDTH / 2; ++i) grad_key[i] = grad_value[i] = 0;
            this->wait_for_buffers(first_thread);  // that the last tile's results leave through

            auto issue_scores = [&](const core::Ring<STAGES>& at) {
                query_ring.wait_full(at);
                ptx::renew(scores);
                ptx::products_fence();
                core::multiply_rows<T, Key, Query>(scores, shared + KEY, 0, shared + QUERIES + at.stage * Query::BYTES,
                                                   own_row);
                ptx::products_commit();
            };

            issue_scores(stage);
            int head = work.kv_head * shape.group, block = work.blocks.begin;
            for (int left = shape.group * (work.blocks.end - work.blocks.begin); left > 0; --left) {
                const uint32_t query = shared + QUERIES + stage.stage * Query::BYTES;
                // without weights to wait for, every other one takes their place
                const uint32_t grad_scores = shared + (HasOutput || stage.stage ? GRAD_SCORES : WEIGHTS);
                float grad_weights[OWN_ROWS / 2];
                uint32_t packed[OWN_ROWS / 4];

                if constexpr (HasOutput) grad_output_ring.wait_full(grad_output_stage);
                ptx::products_wait<0>();
                ptx::pin(scores);
                if constexpr (HasOutput) {
                    ptx::renew(grad_weights);
                    ptx::products_fence();
                    core::multiply_rows<T, Key, Query>(grad_weights, shared + VALUE, 0, shared + GRAD_OUTPUTS, own_row);
                    ptx::products_commit();
                }

                const core::Extras<T> extras(params.extras, shape, work.batch, head);
                const int first_query = block * Rows + own_row;
                const Place place{first_query + core::fragment_column(), work.keys.begin + core::fragment_row()};
                uint32_t kept = 0;                                   // by dropout: a bit for every register
                float gaussian[OWN_ROWS / 2], slopes[OWN_ROWS / 2];  // of the soft cap, but for centres
                UNROLL
                for (int i = 0; i < OWN_ROWS / 2; ++i) gaussian[i] = 1;
                auto factor = [&](int i) {
                    if constexpr (CENTERED) return gaussian[i];
                    if constexpr (HasExtras) return extras.drops() ? extras.factor(kept >> i & 1) : 1.0f;
                    return 1.0f;
                };
                const core::Around around(params.scores.centers, work.batch * shape.heads + head, shape.len_q);
                if constexpr (CENTERED) {
                    around.for_each_by_key(scores, place.first_query, place.first_key,
                                           [&](int i, const core::Center& center, int key) {
                                               scores[i] = extras.capped(scores[i] * params.scores.scale);
                                               if (key < center.begin || key >= center.end)
                                                   scores[i] = -INFINITY;
                                               else if (around.inside())
                                                   scores[i] += around.bias(center, key);
                                               else if (around.after())
                                                   gaussian[i] = around.factor(center, key);
                                           });
                } else {
                    if constexpr (HasExtras) {
                        UNROLL
                        for (int i = 0; i < OWN_ROWS / 2; ++i) {
                            const float capped = extras.capped(scores[i] * params.scores.scale);
                            slopes[i] = extras.slope(capped);
                            scores[i] = extras.biased(capped, place.query(i), place.key(i));
                        }
                    }
                    this->mask(scores, work.keys.begin, first_query);
                    if constexpr (HAS_BASE)
                        this->for_each_row(scores, Base::BASE, stage.stage, own_row,
                                           [&](int i, float base) { scores[i] -= base; });
                }
                this->weigh(scores, grad_weights, unit, stage.stage, own_row);
                if constexpr (HasOutput) {
                    if constexpr (HasExtras && !CENTERED) {
                        if (extras.drops()) {
                            UNROLL
                            for (int i = 0; i < OWN_ROWS / 2; i += 4)
                                kept |= extras.kept_by_key(place.query(i), place.key(i)) << i;
                        }
                    }
                    UNROLL
                    for (int i = 0; i < OWN_ROWS / 2; i += 2)
                        packed[i / 2] = ptx::pack<T>(scores[i] * factor(i), scores[i + 1] * factor(i + 1));
                    core::store_packed<Weights>(shared + WEIGHTS, 0, packed, own_row);
                    ptx::fence_async();
                    ptx::named_barrier_sync(ALL_CONSUMERS, GROUPS * ptx::WARPGROUP);
                    ptx::products_wait<0>();
                    ptx::pin(grad_weights);
                    ptx::pin(grad_value);
                    ptx::products_fence();
                    core::multiply_tiles<T, Weights, Query>(grad_value, shared + WEIGHTS, shared + GRAD_OUTPUTS,
                                                            own_column);
                    ptx::products_commit();
                }
                if constexpr (CENTERED) {
                    if (around.after())
                        around.add_gradients(scores, place.first_query, place.first_key,
                                             [&](int i) { return scores[i] * grad_weights[i] * gaussian[i]; });
                }
                this->for_each_row(scores, ROW, HasOutput ? 0 : stage.stage, own_row, [&](int i, float row) {
                    grad_weights[i] = scores[i] * (grad_weights[i] * factor(i) - row);
                });
                if constexpr (HAS_BASE)  // an infinite score is a constant
                    this->for_each_row(scores, Base::BASE, stage.stage, own_row, [&](int i, float base) {
                        if (base > 0.99f * core::LARGEST) grad_weights[i] = 0;
                    });
                const bool biased = CENTERED && around.inside();
                if (biased)
                    around.add_gradients(scores, place.first_query, place.first_key,
                                         [&](int i) { return grad_weights[i]; });
                if constexpr (CENTERED) {  // there are no registers for slopes
                    this->for_each_row(scores, LSE, stage.stage, own_row, [&](int i, float lse) {
                        if (grad_weights[i] != 0 && extras.caps()) {  // then the weight is not 0, and gives the score
                            float capped = (ptx::log2_approximate(scores[i]) + lse) * core::LN2;
                            if (biased) capped -= around.bias(around.of(place.query(i)), place.key(i));
                            // less the mask, which is none here: so the compiler spills nothing
                            const float relative =
                                (capped - extras.bias(place.query(i), place.key(i))) / extras.options.softcap;
                            grad_weights[i] *= fmaxf(1 - relative * relative, 0.0f);
                        }
                    });
                } else if constexpr (HasExtras) {
                    UNROLL
                    for (int i = 0; i < OWN_ROWS / 2; ++i) {
                        if (extras.options.mask_gradient)
                            extras.add_gradient(grad_weights[i], place.query(i), place.key(i));
                        grad_weights[i] *= slopes[i];
                    }
                }
                core::pack_all<T>(packed, grad_weights);
                core::store_packed<Weights>(grad_scores, 0, packed, own_row);
                ptx::fence_async();
                ptx::products_wait<0>();  // with the weights and the output's gradient
                if constexpr (HasOutput) ptx::pin(grad_value);
                ptx::named_barrier_sync(ALL_CONSUMERS, GROUPS * ptx::WARPGROUP);
                if constexpr (HasOutput) {
                    if (ptx::lane_index() == 0) grad_output_ring.release(grad_output_stage);
                    grad_output_stage.next();
                }

                float squares[OWN_SQUARES][32];
                ptx::pin(grad_key);
                UNROLL
                for (int i = 0; i < OWN_SQUARES; ++i) ptx::renew(squares[i]);
                ptx::products_fence();
                UNROLL
                for (int i = 0; i < OWN_SQUARES; ++i)
                    this->template multiply_square<T, Weights>(squares[i], grad_scores, group * OWN_SQUARES + i);
                ptx::products_commit();
                core::multiply_tiles<T, Weights, Query>(grad_key, grad_scores, query, own_column);
                ptx::products_commit();
                // the next scores follow at once; after the last block, the same again for nobody
                core::Ring<STAGES> next = stage;
                if (left > 1) next.next();
                issue_scores(next);
                ptx::products_wait<2>();
                UNROLL
                for (int i = 0; i < OWN_SQUARES; ++i) {
                    ptx::pin(squares[i]);
                    this->add_square(squares[i], shared + GRAD_QUERY + group * SQUARE_BYTES,
                                     work.batch * shape.heads + head, block, group * OWN_SQUARES + i, group,
                                     first_thread);
                }
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
            for (int i = 0; i < OWN_WIDTH / 2; ++i) grad_key[i] *= params.scores.scale;
            this->wait_for_buffers(first_thread);  // that the last blocks used
            this->template store_rounded<T>(grad_key, shared + GRAD_KEY, 0, own_column);
            if constexpr (HasOutput) this->template store_rounded<T>(grad_value, shared + GRAD_VALUE, 0, own_column);
            ptx::fence_async();
            ptx::named_barrier_sync(ALL_CONSUMERS, GROUPS * ptx::WARPGROUP);
            if (first_thread) {
                const auto leave = [&](const ptx::TensorMap& map, int tile) {
                    Key::store(map, shared + tile, 0, work.keys.begin, work.kv_head, work.batch);
                };
                if (group == 0) leave(params.grad_key, GRAD_KEY);
                if (HasOutput && group == 1) leave(params.grad_value, GRAD_VALUE);
                ptx::commit_stores();
            }
        }
        if (first_thread) ptx::wait_stores<0>();
    }

    // Of the query and key of a lane's accumulators, given those of the first.
    struct Place {
        int first_query, first_key;
        DEVICE int query(int i) const { return first_query + i / 4 * 8 + i % 2; }
        DEVICE int key(int i) const { return first_key + i / 2 % 2 * 8; }
    };
};

}  // namespace kernels
