// Small kernels, one for each idea of csrc/ptx, whose results plain loops can tell.
#pragma once
#include "ptx/bulk_copy.h"
#include "ptx/fence.h"
#include "ptx/launch.h"
#include "ptx/mbarrier.h"
#include "ptx/memory.h"
#include "ptx/named_barrier.h"
#include "ptx/number.h"
#include "ptx/product.h"
#include "ptx/registers.h"
#include "ptx/shuffle.h"
#include "ptx/store_matrix.h"

namespace primitives {

struct Block {
    static constexpr int blocks_per_multiprocessor = 1;

    static DEVICE uint32_t at(int byte) { return ptx::shared_memory() + byte; }

    static DEVICE void init_barrier(int byte, int arrivals) {
        ptx::barrier_init(at(byte), arrivals);
        ptx::fence_barrier_init();
    }
};

enum LeftOperand { A_K_MAJOR, A_MN_MAJOR, A_REGISTERS };

struct ProductParams {
    ptx::TensorMap a, b;      // (64, 64) and (N, 64), the other way round where MN-major
    const uint32_t* a_pairs;  // (64, 32), for A in registers
    float* d;                 // (64, N), added to
    int left;
    int b_first;  // column of an MN-major B to begin at
};

// D (64 x N) += A (64 x 64) B (64 x N).
template <class T, int N, ptx::Major MajorB>
struct Multiply : Block {
    using Params = ProductParams;
    static constexpr const char* name = "multiply";
    static constexpr int threads = 128, A = 1024, A_BYTES = 64 * 128, B = A + A_BYTES, B_COLUMNS = (N + 63) / 64;
    static constexpr int B_BYTES = MajorB == ptx::K_MAJOR ? N * 128 : B_COLUMNS * 64 * 128;
    static constexpr int shared_bytes = B + B_BYTES;

    static DEVICE void run(const Params& params) {
        if (ptx::thread_index() == 0) {
            init_barrier(0, 1);
            ptx::barrier_arrive_expect(at(0), A_BYTES + B_BYTES);
            ptx::load_tile(at(A), params.a, at(0), 0, 0, 0, 0);
            if constexpr (MajorB == ptx::K_MAJOR)
                ptx::load_tile(at(B), params.b, at(0), 0, 0, 0, 0);
            else
                for (int i = 0; i < B_COLUMNS; ++i) ptx::load_tile(at(B + i * 8192), params.b, at(0), i * 64, 0, 0, 0);
        }
        ptx::block_sync();
        ptx::barrier_wait(at(0), 0);
        const int row = ptx::warp_index() * 16 + ptx::lane_index() / 4, column = ptx::lane_index() % 4 * 2;
        float d[N / 2];
        UNROLL
        for (int i = 0; i < N / 2; ++i)
            d[i] = ptx::load_global(params.d + (row + i / 2 % 2 * 8) * N + column + i / 4 * 8 + i % 2);
        uint32_t a[4][4];
        UNROLL
        for (int i = 0; i < 16; ++i)
            a[i / 4][i % 4] =
                ptx::load_global(params.a_pairs + (row + i % 2 * 8) * 32 + i / 4 * 8 + i % 4 / 2 * 4 + column / 2);
        if (params.left == A_K_MAJOR)
            multiply<A_K_MAJOR>(d, a, params.b_first);
        else if (params.left == A_MN_MAJOR)
            multiply<A_MN_MAJOR>(d, a, params.b_first);
        else
            multiply<A_REGISTERS>(d, a, params.b_first);
        UNROLL
        for (int i = 0; i < N / 2; ++i)
            ptx::store_global(params.d + (row + i / 2 % 2 * 8) * N + column + i / 4 * 8 + i % 2, d[i]);
    }

    template <LeftOperand Left>
    static DEVICE void multiply(float (&d)[N / 2], const uint32_t (&a)[4][4], int b_first) {
        using Product = ptx::Product<T, N>;
        ptx::pin(d);
        ptx::products_fence();
        UNROLL
        for (int k = 0; k < 4; ++k) {
            const uint64_t left = ptx::advance(ptx::operand(at(A), 1024), k * (Left == A_K_MAJOR ? 32 : 2048));
            const uint64_t right = MajorB == ptx::K_MAJOR
                                       ? ptx::advance(ptx::operand(at(B), 1024), k * 32)
                                       : ptx::advance(ptx::operand(at(B) + b_first * 2, 1024, 8192), k * 2048);
            if constexpr (Left == A_REGISTERS)
                Product::template registers<MajorB>(d, a[k], right, 1);
            else
                Product::template shared<Left == A_K_MAJOR ? ptx::K_MAJOR : ptx::MN_MAJOR, MajorB>(d, left, right, 1);
        }
        ptx::products_commit();
        ptx::products_wait<0>();
        ptx::pin(d);
    }
};

struct CopyParams {
    ptx::TensorMap from, to;
    float* image;  // of shared memory, rows x 32 words
    int rows;      // of a box
    int from_place[4], to_place[4];
};

// One box in and out again.
struct Copy : Block {
    using Params = CopyParams;
    static constexpr const char* name = "copy";
    static constexpr int threads = 32, TILE = 2048, shared_bytes = TILE + 256 * 128;  // TILE: a multiple of 1024

    static DEVICE void run(const Params& params) {
        const int words = params.rows * 32, *place = params.from_place;
        if (ptx::lane_index() == 0) {
            ptx::prefetch(params.from);
            init_barrier(8, 1);
            ptx::barrier_arrive_expect(at(8), words * 4);
            ptx::load_tile(at(TILE), params.from, at(8), place[0], place[1], place[2], place[3]);
        }
        ptx::warp_sync();
        ptx::barrier_wait(at(8), 0);
        for (int i = ptx::lane_index(); i < words; i += 32)
            ptx::store_global(params.image + i, ptx::load_shared(at(TILE + i * 4)));
        place = params.to_place;
        if (ptx::elect()) {
            ptx::store_tile(params.to, at(TILE), place[0], place[1], place[2], place[3]);
            ptx::commit_stores();
            ptx::wait_stores<0>();
        }
    }
};

struct AddParams {
    float* sums;
    int count, rounds;
};

// Every warp adds i + its number to sums[i], `rounds` times.
struct Add : Block {
    using Params = AddParams;
    static constexpr const char* name = "add";
    static constexpr int threads = 128, BYTES = 4096, shared_bytes = 4 * BYTES;

    static DEVICE void run(const Params& params) {
        const int warp = ptx::warp_index();
        for (int round = 0; round < params.rounds; ++round) {
            for (int i = ptx::lane_index(); i < params.count; i += 32)
                ptx::store_shared(at(warp * BYTES + i * 4), static_cast<float>(i + warp));
            ptx::fence_async();
            ptx::warp_sync();
            if (ptx::elect()) {
                ptx::add_floats(params.sums, at(warp * BYTES), params.count * 4);
                ptx::commit_stores();
                ptx::wait_stores_read<0>();
            }
            ptx::warp_sync();
        }
    }
};

struct MatrixParams {
    const uint32_t* fragments;  // (32, 4)
    float *plain, *transposed;  // four matrices, 8 rows of four words each
};

struct Matrices : Block {
    using Params = MatrixParams;
    static constexpr const char* name = "matrices";
    static constexpr int threads = 32, shared_bytes = 1024;

    static DEVICE void run(const Params& params) {
        const int lane = ptx::lane_index();
        uint32_t m[4];
        for (int i = 0; i < 4; ++i) m[i] = ptx::load_global(params.fragments + lane * 4 + i);
        ptx::store_matrices(at(lane * 16), m[0], m[1], m[2], m[3]);
        ptx::store_matrices_transposed(at(512 + lane * 16), m[0], m[1], m[2], m[3]);
        ptx::warp_sync();
        for (int i = lane; i < 128; i += 32) {
            ptx::store_global(params.plain + i, ptx::load_shared(at(i * 4)));
            ptx::store_global(params.transposed + i, ptx::load_shared(at(512 + i * 4)));
        }
    }
};

struct RingParams {
    const float* rows;  // (count, 128)
    float* sums;        // (128)
    int count;
};

// Rows pass through two stages from a producer warp to four others, which add them up.
struct Ring : Block {
    using Params = RingParams;
    static constexpr const char* name = "ring";
    static constexpr int threads = 160, STAGES = 2, ROW_BYTES = 512, FULL = 0, EMPTY = 8 * STAGES, ROWS = 128;
    static constexpr int shared_bytes = ROWS + STAGES * ROW_BYTES;

    static DEVICE void run(const Params& params) {
        if (ptx::thread_index() == 0)
            for (int stage = 0; stage < STAGES; ++stage) {
                init_barrier(FULL + 8 * stage, 1);
                init_barrier(EMPTY + 8 * stage, 4);
            }
        ptx::block_sync();
        float sum = 0;
        for (int i = 0; i < params.count; ++i) {
            const int stage = i % STAGES, parity = i / STAGES % 2;
            if (ptx::thread_index() == 128) {
                ptx::barrier_wait(at(EMPTY + 8 * stage), parity ^ 1);
                ptx::barrier_arrive_expect(at(FULL + 8 * stage), ROW_BYTES);
                ptx::load_bytes(at(ROWS + stage * ROW_BYTES), params.rows + i * 128, ROW_BYTES, at(FULL + 8 * stage));
            } else if (ptx::thread_index() < 128) {
                ptx::barrier_wait(at(FULL + 8 * stage), parity);
                sum += ptx::load_shared(at(ROWS + stage * ROW_BYTES + ptx::thread_index() * 4));
                ptx::warp_sync();
                if (ptx::lane_index() == 0) ptx::barrier_arrive(at(EMPTY + 8 * stage));
            }
        }
        if (ptx::thread_index() < 128) ptx::store_global(params.sums + ptx::thread_index(), sum);
    }
};

struct LaneParams {
    int *shuffled, *swapped, *above, *any, *elected;  // of every lane of a block
};

struct Lanes : Block {
    using Params = LaneParams;
    static constexpr const char* name = "lanes";
    static constexpr int threads = 64, shared_bytes = 0;

    static DEVICE void run(const Params& params) {
        const int thread = ptx::thread_index(), place = ptx::block_index() * threads + thread;
        ptx::store_global(params.shuffled + place, ptx::shuffle(place, 7));
        ptx::store_global(params.swapped + place, ptx::shuffle_xor(place, 5));
        ptx::store_global(params.above + place, ptx::shuffle_up(place, 3));
        ptx::store_global(params.any + place, static_cast<int>(ptx::any_lane(thread == 40)));
        ptx::store_global(params.elected + place, static_cast<int>(ptx::elect()));
    }
};

struct WordParams {
    const float* in;  // (128, 4)
    float* out;       // (128, 7)
    int* numbers;     // (128)
};

// Words of all sizes to shared memory; every thread reads those of its mirror image.
struct Words : Block {
    using Params = WordParams;
    static constexpr const char* name = "words";
    static constexpr int threads = 128, FLOATS = threads * 16, INTS = FLOATS + threads * 4;
    static constexpr int shared_bytes = INTS + threads * 4;

    static DEVICE void run(const Params& params) {
        const int thread = ptx::thread_index(), other = ptx::forget(threads - 1 - thread);
        float v[4];
        for (int i = 0; i < 4; ++i) v[i] = ptx::load_global(params.in + thread * 4 + i);
        ptx::store_shared4(at(thread * 16), make_float4(v[0], v[1], v[2], v[3]));
        ptx::store_shared(at(FLOATS + thread * 4), v[0]);
        ptx::store_shared_int(at(INTS + thread * 4), thread - 100);
        ptx::block_sync();
        const float4 four = ptx::load_shared4(at(other * 16));
        const float2 two = ptx::load_shared2(at(other * 16 + 8));
        const float out[] = {four.x, four.y, four.z, four.w, two.x, two.y, ptx::load_shared(at(FLOATS + other * 4))};
        for (int i = 0; i < 7; ++i) ptx::store_global(params.out + thread * 7 + i, out[i]);
        ptx::store_global(params.numbers + thread, ptx::load_shared_int(at(INTS + other * 4)));
    }
};

struct TicketParams {
    int *counter, *tickets;  // a ticket for every thread of all blocks
    float* sums;             // of every lane's tickets' places
};

struct Tickets : Block {
    using Params = TicketParams;
    static constexpr const char* name = "tickets";
    static constexpr int threads = 64, shared_bytes = 0;

    static DEVICE void run(const Params& params) {
        const int place = ptx::block_index() * threads + ptx::thread_index();
        ptx::store_global(params.tickets + place, ptx::fetch_add(params.counter, 1));
        ptx::add_global(params.sums + ptx::lane_index(), static_cast<float>(place));
    }
};

struct TurnParams {
    int* numbers;  // (2, 128): the last of each warpgroup
    int rounds;
};

// Two warpgroups take turns: each makes its numbers from the other's last ones.
struct Turns : Block {
    using Params = TurnParams;
    static constexpr const char* name = "turns";
    static constexpr int threads = 2 * ptx::WARPGROUP, BYTES = 4 * ptx::WARPGROUP, shared_bytes = 2 * BYTES;

    static DEVICE void run(const Params& params) {
        const int group = ptx::warpgroup_index(), thread = ptx::thread_index() % ptx::WARPGROUP;
        int number = thread;
        for (int round = 0; round < params.rounds; ++round) {
            if (round > 0 || group == 1) {
                ptx::named_barrier_sync(1 + group, threads);
                const int neighbour = (thread + 1) % ptx::WARPGROUP;
                number = 3 * ptx::load_shared_int(at((1 - group) * BYTES + neighbour * 4)) + group;
            }
            ptx::store_shared_int(at(group * BYTES + thread * 4), number);
            if (round + 1 < params.rounds || group == 0) ptx::named_barrier_arrive(2 - group, threads);
        }
        ptx::store_global(params.numbers + group * ptx::WARPGROUP + thread, number);
    }
};

struct RegisterParams {
    const float* in;  // (2, COUNT, 128)
    float* out;       // the same, rotated by one along COUNT
};

// One warpgroup gives registers to two others, which hold more numbers than the launch gave them registers (168).
struct Registers : Block {
    using Params = RegisterParams;
    static constexpr const char* name = "registers";
    static constexpr int threads = 3 * ptx::WARPGROUP, shared_bytes = 0, COUNT = 200;

    static DEVICE void run(const Params& params) {
        const int group = ptx::warpgroup_index();
        if (group == 2) {
            ptx::give_registers<24>();
        } else {
            ptx::take_registers<240>();
            const int place = group * COUNT * ptx::WARPGROUP + ptx::thread_index() % ptx::WARPGROUP;
            float held[COUNT];
            UNROLL
            for (int i = 0; i < COUNT; ++i) held[i] = ptx::load_global(params.in + place + i * ptx::WARPGROUP);
            ptx::pin(held);
            UNROLL
            for (int i = 0; i < COUNT; ++i)
                ptx::store_global(params.out + place + i * ptx::WARPGROUP, held[(i + 1) % COUNT]);
        }
    }
};

struct NumberParams {
    const void *x, *y;
    void* result;
    int count;
};

// result[i] = Function::of(x[i], y[i])
template <class Function>
struct Numbers : Block {
    using Params = NumberParams;
    static constexpr const char* name = Function::name;
    static constexpr int threads = 128, shared_bytes = 0;

    static DEVICE void run(const Params& params) {
        using Number = typename Function::Number;
        using Result = decltype(Function::of(Number(), Number()));
        const int first = ptx::block_index() * threads + ptx::thread_index();
        for (int i = first; i < params.count; i += ptx::grid_size() * threads)
            ptx::store_global(static_cast<Result*>(params.result) + i,
                              Function::of(ptx::load_global(static_cast<const Number*>(params.x) + i),
                                           ptx::load_global(static_cast<const Number*>(params.y) + i)));
    }
};

struct PackBf16 {
    using Number = float;
    static constexpr const char* name = "pack_bf16";
    static DEVICE uint32_t of(float low, float high) { return ptx::pack<ptx::bf16>(low, high); }
};

struct PackFp16 {
    using Number = float;
    static constexpr const char* name = "pack_fp16";
    static DEVICE uint32_t of(float low, float high) { return ptx::pack<ptx::fp16>(low, high); }
};

struct Bf16ToFloat {
    using Number = ptx::bf16;
    static constexpr const char* name = "bf16_to_float";
    static DEVICE float of(ptx::bf16 x, ptx::bf16) { return ptx::to_float(x); }
};

struct Fp16ToFloat {
    using Number = ptx::fp16;
    static constexpr const char* name = "fp16_to_float";
    static DEVICE float of(ptx::fp16 x, ptx::fp16) { return ptx::to_float(x); }
};

struct Exp2 {
    using Number = float;
    static constexpr const char* name = "exp2";
    static DEVICE float of(float x, float) { return ptx::exp2_approximate(x); }
};

struct Log2 {
    using Number = float;
    static constexpr const char* name = "log2";
    static DEVICE float of(float x, float) { return ptx::log2_approximate(x); }
};

struct Tanh {
    using Number = float;
    static constexpr const char* name = "tanh";
    static DEVICE float of(float x, float) { return ptx::tanh_approximate(x); }
};

struct MinOrNan {
    using Number = float;
    static constexpr const char* name = "min_or_nan";
    static DEVICE float of(float x, float y) { return ptx::min_or_nan(x, y); }
};

struct MultiplyHigh {
    using Number = uint32_t;
    static constexpr const char* name = "multiply_high";
    static DEVICE uint32_t of(uint32_t x, uint32_t y) { return ptx::multiply_high(x, y); }
};

}  // namespace primitives
