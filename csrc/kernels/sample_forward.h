// Hard attention, forward: exact samples from the attention distribution, their scores, lse and entropy, in one pass
// over the keys. The values are not read: the output is a gather.
#pragma once
#include "core/query_tiles.h"
#include "core/roles.h"
#include "core/sampler.h"
#include <ptx/launch.h>

namespace kernels {

// So many samples at once, at most 4; more come as further heads of the tiling.
template <class T, int Width, int Rows, int KeyStages, int Samples, core::Sight Seen>
struct SampleForward : core::QueryTiles<Width, Rows, 128, KeyStages, false, false, Seen> {
    using Params = SampleForwardParams;
    static constexpr int KEYS = 128;
    using Base = core::QueryTiles<Width, Rows, KEYS, KeyStages, false, false, Seen>;
    using typename Base::Work;
    static constexpr const char* name = "sample_forward";

    const Params& params;

    DEVICE explicit SampleForward(const Params& params) : Base(params), params(params) {}

    static DEVICE void run(const Params& params) { core::run_roles(SampleForward(params)); }

    DEVICE void consume(int group) const {
        core::Ring<KeyStages> key_stage;
        core::Ring<Base::QUERY_STAGES> query_stage;
        const int64_t seed = ptx::load_global(params.seed);
        for (;;) {
            const Work work = this->meet(query_stage);
            const int row = work.rows.begin + group * 64 + core::fragment_row();
            core::Sampler<Samples> sampler(params.scores.scale * core::LOG2E);
            for (int step = 0; step < work.count(); ++step) {
                float scores[KEYS / 2];
                this->template issue_scores<T>(scores, query_stage, key_stage, group);
                ptx::products_wait<0>();
                ptx::pin(scores);
                this->release(this->key_ring, key_stage);
                if (!work.exists) return;
                const int block = work.block(step);
                this->mask(scores, work, block, row);
                sampler.raise(scores);
                // each of the four lanes that share two rows draws for one row and half of the block
                const int lane = ptx::lane_index() % 4;
                const core::Words own = draw(seed, work, row + lane % 2 * 8, 2 * block + lane / 2);
                core::Words words[2];
                share(words, own, 0);
                sampler.template take<0>(scores, block * KEYS, words);
                share(words, own, 2);
                sampler.template take<32>(scores, block * KEYS + core::SAMPLE_BLOCK, words);
            }
            ptx::warp_sync();  // all lanes have read the tile's number
            this->release(this->query_ring, query_stage);
            store(sampler, work, row);
        }
    }

    DEVICE core::Words draw(int64_t seed, const Work& work, int row, int block) const {
        const Shape& shape = params.shape;
        return core::philox(seed, row, work.batch % shape.batch * shape.heads + work.head,
                            core::SAMPLE_STREAM + work.batch / shape.batch, block);
    }

    // The words of the two lanes from `from` on, of the four that share two rows.
    static DEVICE void share(core::Words (&words)[2], const core::Words& own, int from) {
        const int lane = (ptx::lane_index() & ~3) + from;
        UNROLL
        for (int r = 0; r < Samples; ++r) {
            words[0].word[r] = ptx::shuffle(own.word[r], lane);
            words[1].word[r] = ptx::shuffle(own.word[r], lane + 1);
        }
    }

    DEVICE void store(const core::Sampler<Samples>& sampler, const Work& work, int row) const {
        const Shape& shape = params.shape;
        float lse[2], entropy[2];
        sampler.finish(lse, entropy);
        if (ptx::lane_index() % 4 != 0) return;
        const int round = work.batch / shape.batch, batch = work.batch % shape.batch;
        const int64_t head_row = (static_cast<int64_t>(batch) * shape.heads + work.head) * shape.len_q;
        const int64_t all_rows = static_cast<int64_t>(shape.batch) * shape.heads * shape.len_q;
        UNROLL
        for (int i = 0; i < 2; ++i) {
            if (row + 8 * i >= shape.len_q) continue;
            const int64_t at = head_row + row + 8 * i;
            if (round == 0) {
                ptx::store_global(params.lse + at, lse[i]);
                ptx::store_global(params.entropy + at, entropy[i]);
            }
            UNROLL
            for (int r = 0; r < Samples; ++r) {
                const int sample = 4 * round + r;
                if (sample >= params.samples) continue;
                const bool found = sampler.index[i][r] >= 0;
                ptx::store_global(params.index + sample * all_rows + at, static_cast<int64_t>(sampler.index[i][r]));
                ptx::store_global(params.score + sample * all_rows + at,
                                  found ? sampler.score[i][r] * params.scores.scale : 0.0f);
            }
        }
    }
};

}  // namespace kernels
