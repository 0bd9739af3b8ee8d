// Hazards of barriers, warps, and plain accesses: each planted when Planted, and absent from its twin.
#pragma once
#include "hazard_case.h"

namespace hazards {

template <bool Planted>
struct BarrierTwice : Case {
    static constexpr const char *name = "barrier_twice", *hazard = "barrier initialised twice";
    static DEVICE void run(const Params& params) {
        init_barriers(1);
        if (Planted && ptx::thread_index() == 64) ptx::barrier_init(barrier(0), 1);
        if (ptx::thread_index() == 0) load(0, params.input, 0);
        ptx::barrier_wait(barrier(0), 0);
        copy_out(params, tile(0), ptx::thread_index(), threads);
    }
};

template <bool Planted>
struct BarrierForgotten : Case {
    static constexpr const char *name = "barrier_forgotten", *hazard = "barrier not initialised";
    static DEVICE void run(const Params& params) {
        init_barriers(Planted ? 1 : 2);
        if (ptx::thread_index() == 0) load(0, params.input, 1);
        ptx::barrier_wait(barrier(1), 0);
        copy_out(params, tile(0), ptx::thread_index(), threads);
    }
};

template <bool Planted>
struct BarrierUnfenced : Case {
    static constexpr const char *name = "barrier_unfenced", *hazard = "missing barrier-init fence";
    static DEVICE void run(const Params& params) {
        if (ptx::thread_index() == 0) {
            ptx::barrier_init(barrier(0), 1);
            if (!Planted) ptx::fence_barrier_init();
        }
        ptx::block_sync();
        if (ptx::thread_index() == 32) load(0, params.input, 0);
        ptx::barrier_wait(barrier(0), 0);
        copy_out(params, tile(0), ptx::thread_index(), threads);
    }
};

// Other warps use a barrier without having met the one that initialised it.
template <bool Planted>
struct BarrierUnordered : Case {
    static constexpr const char *name = "barrier_unordered", *hazard = "race|barrier not initialised";
    static DEVICE void run(const Params& params) {
        if (ptx::thread_index() == 0) {
            ptx::barrier_init(barrier(0), 1);
            ptx::fence_barrier_init();
            load(0, params.input, 0);
        }
        if (!Planted) ptx::block_sync();
        ptx::barrier_wait(barrier(0), 0);
        copy_out(params, tile(0), ptx::thread_index(), threads);
    }
};

template <bool Planted>
struct BarrierOverwritten : Case {
    static constexpr const char *name = "barrier_overwritten", *hazard = "access to a barrier's bytes";
    static DEVICE void run(const Params& params) {
        init_barriers(1);
        if (ptx::thread_index() == 0) {
            ptx::store_shared(barrier(Planted ? 0 : 1), 0.0f);
            load(0, params.input, 0);
        }
        ptx::barrier_wait(barrier(0), 0);
        copy_out(params, tile(0), ptx::thread_index(), threads);
    }
};

// Both threads' arrivals belong to one phase, which their copy keeps open.
template <bool Planted>
struct TooManyArrivals : Case {
    static constexpr const char *name = "too_many_arrivals", *hazard = "too many arrivals";
    static DEVICE void run(const Params& params) {
        init_barriers(1, Planted ? 1 : 2);
        if (ptx::thread_index() == 0) {
            ptx::barrier_arrive_expect(barrier(0), TILE_BYTES);
            ptx::barrier_arrive(barrier(0));
            ptx::load_tile(tile(0), params.input, barrier(0), 0, 0, 0, 0);
        }
        ptx::barrier_wait(barrier(0), 0);
        copy_out(params, tile(0), ptx::thread_index(), threads);
    }
};

template <bool Planted>
struct TxOverflow : Case {
    static constexpr const char *name = "tx_overflow", *hazard = "tx-count overflow";
    static DEVICE void run(const Params& params) {
        init_barriers(1);
        if (ptx::thread_index() == 0) {
            ptx::barrier_arrive_expect(barrier(0), Planted ? 1 << 20 : TILE_BYTES);
            ptx::load_tile(tile(0), params.input, barrier(0), 0, 0, 0, 0);
        }
        ptx::barrier_wait(barrier(0), 0);
        copy_out(params, tile(0), ptx::thread_index(), threads);
    }
};

template <bool Planted>
struct NamedBarrierCounts : Case {
    static constexpr const char *name = "named_barrier_counts", *hazard = "named barrier misused";
    static DEVICE void run(const Params& params) {
        copy_in(params, tile(0), ptx::thread_index(), threads);
        ptx::named_barrier_sync(3, Planted && ptx::warp_index() == 1 ? 96 : 128);
        copy_out(params, tile(0), (ptx::thread_index() + 32) % threads, threads);
    }
};

template <bool Planted>
struct NamedBarrierAbsent : Case {
    static constexpr const char *name = "named_barrier_absent", *hazard = "deadlock";
    static DEVICE void run(const Params& params) {
        copy_in(params, tile(0), ptx::thread_index(), threads);
        if (Planted && ptx::warp_index() == 3) return;
        ptx::named_barrier_sync(3, 128);
        copy_out(params, tile(0), (ptx::thread_index() + 32) % threads, threads);
    }
};

// Writers arrive, the reader waits: one way only.
template <bool Planted>
struct NamedBarrierOneWay : Case {
    static constexpr const char *name = "named_barrier_one_way", *hazard = "race";
    static DEVICE void run(const Params& params) {
        if (ptx::warp_index() < 3) {
            if (Planted) ptx::named_barrier_arrive(1, 128);
            copy_in(params, tile(0), ptx::thread_index(), 96);
            if (!Planted) ptx::named_barrier_arrive(1, 128);
        } else {
            ptx::named_barrier_sync(1, 128);
            copy_out(params, tile(0), ptx::lane_index(), 32);
        }
    }
};

template <bool Planted>
struct WarpRace : Case {
    static constexpr const char *name = "warp_race", *hazard = "race";
    static constexpr int threads = 32;
    static DEVICE void run(const Params& params) {
        copy_in(params, tile(0), ptx::lane_index(), 32);
        // A shuffle brings lanes together but orders no memory.
        if (Planted)
            ptx::shuffle(0, 0);
        else
            ptx::warp_sync();
        copy_out(params, tile(0), (ptx::lane_index() + 1) % 32, 32);
    }
};

template <bool Planted>
struct Uninitialised : Case {
    static constexpr const char *name = "uninitialised", *hazard = "uninitialised read";
    static DEVICE void run(const Params& params) {
        copy_in(params, tile(0), ptx::thread_index(), threads);
        ptx::block_sync();
        copy_out(params, tile(Planted ? 1 : 0), ptx::thread_index(), threads);
    }
};

template <bool Planted>
struct OutOfShared : Case {
    static constexpr const char *name = "out_of_shared", *hazard = "out of bounds";
    static DEVICE void run(const Params& params) {
        const uint32_t to = ptx::shared_memory() + shared_bytes - TILE_BYTES + (Planted ? 1024 : 0);
        copy_in(params, to, ptx::thread_index(), threads);
        ptx::block_sync();
        copy_out(params, to, ptx::thread_index(), threads);
    }
};

template <bool Planted>
struct OutOfGlobal : Case {
    static constexpr const char *name = "out_of_global", *hazard = "out of bounds";
    static DEVICE void run(const Params& params) {
        for (int i = ptx::thread_index(); i < WORDS + (Planted ? 1 : 0); i += threads)
            ptx::store_global(params.result + i, ptx::load_global(params.words + i));
    }
};

template <bool Planted>
struct DivergentWarp : Case {
    static constexpr const char *name = "divergent_warp", *hazard = "divergent warp";
    static DEVICE void run(const Params& params) {
        if (Planted && ptx::lane_index() == 5)
            ptx::warp_sync();
        else
            ptx::any_lane(true);
        copy_in(params, tile(0), ptx::thread_index(), threads);
        copy_out(params, tile(0), ptx::thread_index(), threads);
    }
};

template <bool Planted>
struct LanesMissing : Case {
    static constexpr const char *name = "lanes_missing", *hazard = "deadlock";
    static DEVICE void run(const Params& params) {
        if (!Planted || ptx::lane_index() < 16) ptx::warp_sync();
        copy_in(params, tile(0), ptx::thread_index(), threads);
        copy_out(params, tile(0), ptx::thread_index(), threads);
    }
};

template <bool Planted>
struct RegistersExhausted : Case {
    static constexpr const char *name = "registers_exhausted", *hazard = "register pool";
    static constexpr int threads = 3 * ptx::WARPGROUP;
    static DEVICE void run(const Params& params) {
        if (ptx::warpgroup_index() == 0)
            ptx::give_registers<24>();
        else
            ptx::take_registers<Planted ? 248 : 240>();
        copy_in(params, tile(0), ptx::thread_index(), threads);
        copy_out(params, tile(0), ptx::thread_index(), threads);
    }
};

}  // namespace hazards
