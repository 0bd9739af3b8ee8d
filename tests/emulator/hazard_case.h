// What the hazard cases share. Every kernel copies a 64 x 64 tile of bf16 from `input` to `result`, two numbers
// a word, by the mechanism that its hazard is about; kernels that multiply do so by the identity.
#pragma once
#include "ptx/bulk_copy.h"
#include "ptx/fence.h"
#include "ptx/launch.h"
#include "ptx/mbarrier.h"
#include "ptx/memory.h"
#include "ptx/named_barrier.h"
#include "ptx/product.h"
#include "ptx/registers.h"
#include "ptx/shuffle.h"
#include "ptx/store_matrix.h"

namespace hazards {

constexpr int SIDE = 64, WORDS = SIDE * SIDE / 2, TILE_BYTES = SIDE * SIDE * 2;

struct Params {
    ptx::TensorMap input, identity, output;  // boxes of 64 rows; the output lies on the result
    const float* words;                      // of the input
    float* result;
};

// A block of one warpgroup; tiles of shared memory start at 1024.
struct Case {
    using Params = hazards::Params;
    static constexpr int threads = ptx::WARPGROUP, shared_bytes = 4 * TILE_BYTES, blocks_per_multiprocessor = 1;
};

DEVICE uint32_t barrier(int i) { return ptx::shared_memory() + i * ptx::BARRIER_BYTES; }
DEVICE uint32_t tile(int i) { return ptx::shared_memory() + 1024 + i * TILE_BYTES; }

// Address of a word of a swizzled tile.
DEVICE uint32_t word(uint32_t tile, int i) {
    const int row = i / 32, chunk = i % 32 / 4;
    return tile + row * 128 + (chunk ^ row % 8) * 16 + i % 4 * 4;
}

// Barriers 0 ... count - 1, initialised by thread 0, ready for all.
DEVICE void init_barriers(int count, int arrivals = 1) {
    if (ptx::thread_index() == 0) {
        for (int i = 0; i < count; ++i) ptx::barrier_init(barrier(i), arrivals);
        ptx::fence_barrier_init();
    }
    ptx::block_sync();
}

// One thread loads a tile.
DEVICE void load(int to, const ptx::TensorMap& map, int on) {
    ptx::barrier_arrive_expect(barrier(on), TILE_BYTES);
    ptx::load_tile(tile(to), map, barrier(on), 0, 0, 0, 0);
}

// `count` threads with these numbers copy a swizzled tile to the result.
DEVICE void copy_out(const Params& params, uint32_t tile, int thread, int count) {
    for (int i = thread; i < WORDS; i += count) ptx::store_global(params.result + i, ptx::load_shared(word(tile, i)));
}

// `count` threads with these numbers copy the input to a swizzled tile by ordinary stores.
DEVICE void copy_in(const Params& params, uint32_t tile, int thread, int count) {
    for (int i = thread; i < WORDS; i += count) ptx::store_shared(word(tile, i), ptx::load_global(params.words + i));
}

// d (+)= tile a times tile b, all four steps, of a warpgroup.
DEVICE void multiply(float (&d)[32], int a, int b, bool accumulate = false) {
    for (int k = 0; k < 4; ++k)
        ptx::Product<ptx::bf16, 64>::shared<ptx::K_MAJOR, ptx::K_MAJOR>(
            d, ptx::advance(ptx::operand(tile(a), 1024), 32 * k), ptx::advance(ptx::operand(tile(b), 1024), 32 * k),
            accumulate || k > 0);
}

// The place of a thread's accumulators d[2 i] and d[2 i + 1] in the result.
DEVICE int accumulator_word(int thread, int i) {
    const int row = thread / 32 * 16 + thread % 32 / 4 + i % 2 * 8;
    return row * 32 + i / 2 * 4 + thread % 4;
}

DEVICE float as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

// A warpgroup's accumulators to the result.
DEVICE void store_result(const Params& params, const float (&d)[32]) {
    const int thread = ptx::thread_index() % ptx::WARPGROUP;
    for (int i = 0; i < 16; ++i)
        ptx::store_global(params.result + accumulator_word(thread, i),
                          as_float(ptx::pack<ptx::bf16>(d[2 * i], d[2 * i + 1])));
}

// The input's fragments, as the left operand of four products.
DEVICE void load_fragments(const Params& params, uint32_t (&a)[16]) {
    for (int i = 0; i < 16; ++i) {
        const float both = ptx::load_global(params.words + accumulator_word(ptx::thread_index(), i));
        std::memcpy(&a[i], &both, sizeof(both));
    }
}

}  // namespace hazards
