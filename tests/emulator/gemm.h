// C = A B^T, persistent and warp-specialised: a producer warp loads tiles into a ring, two consumer warpgroups
// multiply 64 rows each and store their tile of C with the copy engine. Fragments as in a real kernel.
#pragma once
#include "ptx/bulk_copy.h"
#include "ptx/fence.h"
#include "ptx/launch.h"
#include "ptx/mbarrier.h"
#include "ptx/named_barrier.h"
#include "ptx/product.h"
#include "ptx/registers.h"
#include "ptx/shuffle.h"
#include "ptx/store_matrix.h"

namespace tests {

struct GemmParams {
    ptx::TensorMap a, b, c;
    int tiles_m, tiles_n, steps;
};

// Tiles are 128 x 64 (A), 64 x 64 (B) and 64 x 64 (C); a step covers 64 numbers of the dimension summed over.
struct Gemm {
    using Params = GemmParams;
    static constexpr int threads = 3 * ptx::WARPGROUP;
    static constexpr int stages = 2;
    static constexpr int a_bytes = 128 * 128, b_bytes = 64 * 128, c_bytes = 64 * 128;
    static constexpr int ring = 1024;
    static constexpr int out = ring + stages * (a_bytes + b_bytes);
    static constexpr int shared_bytes = out + 2 * c_bytes;
    static constexpr int blocks_per_multiprocessor = 1;
    static constexpr const char* name = "gemm";

    static DEVICE uint32_t full(int stage) { return ptx::shared_memory() + stage * ptx::BARRIER_BYTES; }
    static DEVICE uint32_t empty(int stage) { return full(stages + stage); }
    static DEVICE uint32_t tile_a(int stage) { return ptx::shared_memory() + ring + stage * (a_bytes + b_bytes); }
    static DEVICE uint32_t tile_b(int stage) { return tile_a(stage) + a_bytes; }

    static DEVICE void run(const Params& params) {
        const int group = ptx::warpgroup_index();
        if (ptx::thread_index() == 0) {
            for (int stage = 0; stage < stages; ++stage) {
                ptx::barrier_init(full(stage), 1);
                ptx::barrier_init(empty(stage), 2);
            }
            ptx::fence_barrier_init();
        }
        ptx::block_sync();
        if (group == 0) {
            ptx::give_registers<24>();
            if (ptx::thread_index() == 0) produce(params);
        } else {
            ptx::take_registers<240>();
            consume(params, group - 1);
        }
    }

    static DEVICE void produce(const Params& params) {
        int stage = 0, parity = 1;
        for (int tile = ptx::block_index(); tile < params.tiles_m * params.tiles_n; tile += ptx::grid_size()) {
            for (int step = 0; step < params.steps; ++step) {
                ptx::barrier_wait(empty(stage), parity);
                ptx::barrier_arrive_expect(full(stage), a_bytes + b_bytes);
                ptx::load_tile(tile_a(stage), params.a, full(stage), step * 64, tile / params.tiles_n * 128, 0, 0);
                ptx::load_tile(tile_b(stage), params.b, full(stage), step * 64, tile % params.tiles_n * 64, 0, 0);
                if (++stage == stages) stage = 0, parity ^= 1;
            }
        }
    }

    static DEVICE void consume(const Params& params, int group) {
        const int thread = ptx::thread_index() % ptx::WARPGROUP;
        const uint32_t staging = ptx::shared_memory() + out + group * c_bytes;
        int stage = 0, parity = 0;
        for (int tile = ptx::block_index(); tile < params.tiles_m * params.tiles_n; tile += ptx::grid_size()) {
            float d[32];
            for (int step = 0; step < params.steps; ++step) {
                ptx::barrier_wait(full(stage), parity);
                const uint64_t a = ptx::operand(tile_a(stage) + group * 64 * 128, 1024);
                const uint64_t b = ptx::operand(tile_b(stage), 1024);
                ptx::pin(d);
                ptx::products_fence();
                UNROLL
                for (int k = 0; k < 4; ++k)
                    ptx::Product<ptx::bf16, 64>::shared<ptx::K_MAJOR, ptx::K_MAJOR>(
                        d, ptx::advance(a, k * 32), ptx::advance(b, k * 32), step > 0 || k > 0);
                ptx::products_commit();
                ptx::products_wait<0>();
                ptx::pin(d);
                if (thread == 0) ptx::barrier_arrive(empty(stage));
                if (++stage == stages) stage = 0, parity ^= 1;
            }
            // The last tile's store must have read the staging tile before it is written again.
            if (thread == 0) ptx::wait_stores_read<0>();
            ptx::named_barrier_sync(1 + group, ptx::WARPGROUP);
            store_fragments(staging, d);
            ptx::fence_async();
            ptx::named_barrier_sync(1 + group, ptx::WARPGROUP);
            if (thread == 0) {
                ptx::store_tile(params.c, staging, tile % params.tiles_n * 64, tile / params.tiles_n * 128 + group * 64,
                                0, 0);
                ptx::commit_stores();
            }
        }
        if (thread == 0) ptx::wait_stores<0>();
    }

    // Each warp writes its 16 rows, two column groups of eight at a time.
    static DEVICE void store_fragments(uint32_t staging, const float (&d)[32]) {
        const int warp = ptx::thread_index() % ptx::WARPGROUP / ptx::WARP, lane = ptx::lane_index();
        const int row = warp * 16 + lane % 16;
        for (int i = 0; i < 4; ++i) {
            const uint32_t address = staging + row * 128 + ((i * 2 + lane / 16) ^ row % 8) * 16;
            uint32_t m[4];
            for (int j = 0; j < 4; ++j) m[j] = ptx::pack<ptx::bf16>(d[i * 8 + j * 2], d[i * 8 + j * 2 + 1]);
            ptx::store_matrices(address, m[0], m[1], m[2], m[3]);
        }
    }
};

}  // namespace tests
