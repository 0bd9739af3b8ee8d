// Hazards of bulk copies: each planted when Planted, and absent from its twin.
#pragma once
#include "hazard_case.h"

namespace hazards {

template <bool Planted>
struct ReadBeforeWait : Case {
    static constexpr const char *name = "read_before_wait", *hazard = "read before the copy was waited for";
    static DEVICE void run(const Params& params) {
        init_barriers(1);
        if (ptx::thread_index() == 0) load(0, params.input, 0);
        ptx::block_sync();
        if (!Planted || ptx::warp_index() != 2) ptx::barrier_wait(barrier(0), 0);
        copy_out(params, tile(0), ptx::thread_index(), threads);
    }
};

// Two loads through one stage; the second is waited for with the parity of the first.
template <bool Planted>
struct StaleParity : Case {
    static constexpr const char *name = "stale_parity", *hazard = "read before the copy was waited for";
    static DEVICE void run(const Params& params) {
        init_barriers(1);
        for (int round = 0; round < 2; ++round) {
            if (ptx::thread_index() == 0) load(0, round == 0 ? params.identity : params.input, 0);
            ptx::block_sync();
            ptx::barrier_wait(barrier(0), Planted ? 0 : round);
            copy_out(params, tile(0), ptx::thread_index(), threads);
            ptx::block_sync();
        }
    }
};

// Only lane 0 of each warp waits; the others must hear of it.
template <bool Planted>
struct OneLaneWaits : Case {
    static constexpr const char *name = "one_lane_waits", *hazard = "read before the copy was waited for";
    static DEVICE void run(const Params& params) {
        init_barriers(1);
        if (ptx::thread_index() == 0) load(0, params.input, 0);
        ptx::block_sync();
        if (ptx::elect()) ptx::barrier_wait(barrier(0), 0);
        if (!Planted) ptx::warp_sync();
        copy_out(params, tile(0), ptx::thread_index(), threads);
    }
};

// A stage is loaded again before its readers have said that they are done.
template <bool Planted>
struct LoadOverRead : Case {
    static constexpr const char *name = "load_over_read", *hazard = "race|read before the copy was waited for";
    static DEVICE void run(const Params& params) {
        init_barriers(1);
        for (int round = 0; round < 2; ++round) {
            if (round == 1 && (!Planted || ptx::warp_index() == 0)) {
                if (Planted)
                    ptx::warp_sync();
                else
                    ptx::block_sync();
            }
            if (ptx::thread_index() == 0) load(0, round == 0 ? params.identity : params.input, 0);
            ptx::barrier_wait(barrier(0), round);
            copy_out(params, tile(0), ptx::thread_index(), threads);
        }
    }
};

// One lane says that its warp is done while other lanes may still read.
template <bool Planted>
struct EarlyRelease : Case {
    static constexpr const char *name = "early_release", *hazard = "race";
    static DEVICE void run(const Params& params) {
        if (ptx::thread_index() == 0) {
            ptx::barrier_init(barrier(0), 1);
            ptx::barrier_init(barrier(1), 3);
            ptx::fence_barrier_init();
        }
        ptx::block_sync();
        const int warp = ptx::warp_index();
        for (int round = 0; round < 4; ++round) {
            if (warp == 0) {
                if (ptx::elect()) {
                    ptx::barrier_wait(barrier(1), round % 2 ^ 1);
                    load(0, round < 3 ? params.identity : params.input, 0);
                }
                continue;
            }
            ptx::barrier_wait(barrier(0), round % 2);
            copy_out(params, tile(0), ptx::thread_index() - 32, 96);
            if (!Planted) ptx::warp_sync();
            if (ptx::lane_index() == 0) ptx::barrier_arrive(barrier(1));
        }
    }
};

template <bool Planted>
struct StoreOverwritten : Case {
    static constexpr const char *name = "store_overwritten", *hazard = "overwrite of an operand still being read";
    static DEVICE void run(const Params& params) {
        const int thread = ptx::thread_index();
        for (int i = thread; i < WORDS; i += threads) ptx::store_shared(tile(0) + i * 4, 0.0f);
        ptx::fence_async();
        ptx::block_sync();
        if (thread == 0) {
            ptx::store_tile(params.output, tile(0), 0, 0, 0, 0);
            ptx::commit_stores();
            if (!Planted) ptx::wait_stores<0>();
        }
        ptx::block_sync();
        copy_in(params, tile(0), thread, threads);
        ptx::fence_async();
        ptx::block_sync();
        if (thread == 0) {
            ptx::store_tile(params.output, tile(0), 0, 0, 0, 0);
            ptx::commit_stores();
            ptx::wait_stores<0>();
        }
    }
};

template <bool Planted>
struct StoreUnfenced : Case {
    static constexpr const char *name = "store_unfenced", *hazard = "missing async-proxy fence";
    static DEVICE void run(const Params& params) {
        copy_in(params, tile(0), ptx::thread_index(), threads);
        if (!Planted) ptx::fence_async();
        ptx::block_sync();
        if (Planted) ptx::fence_async();  // too late: the others' stores were ordered without it
        if (ptx::thread_index() == 0) {
            ptx::store_tile(params.output, tile(0), 0, 0, 0, 0);
            ptx::commit_stores();
            ptx::wait_stores<0>();
        }
    }
};

// The copy engine overwrites what threads have stored.
template <bool Planted>
struct LoadUnfenced : Case {
    static constexpr const char *name = "load_unfenced", *hazard = "missing async-proxy fence";
    static DEVICE void run(const Params& params) {
        init_barriers(1);
        copy_in(params, tile(0), ptx::thread_index(), threads);
        if (!Planted) ptx::fence_async();
        ptx::block_sync();
        if (ptx::thread_index() == 0) load(0, params.input, 0);
        ptx::barrier_wait(barrier(0), 0);
        copy_out(params, tile(0), ptx::thread_index(), threads);
    }
};

template <bool Planted>
struct StoreLeftBehind : Case {
    static constexpr const char *name = "store_left_behind", *hazard = "exit before asynchronous work was waited for";
    static DEVICE void run(const Params& params) {
        copy_in(params, tile(0), ptx::thread_index(), threads);
        ptx::fence_async();
        ptx::block_sync();
        if (ptx::thread_index() == 0) {
            ptx::store_tile(params.output, tile(0), 0, 0, 0, 0);
            ptx::commit_stores();
            if (!Planted) ptx::wait_stores_read<0>();
        }
    }
};

template <bool Planted>
struct LoadLeftBehind : Case {
    static constexpr const char *name = "load_left_behind", *hazard = "exit before asynchronous work was waited for";
    static DEVICE void run(const Params& params) {
        init_barriers(2);
        if (ptx::thread_index() == 0) {
            load(0, params.input, 0);
            load(1, params.input, 1);
            if (!Planted) ptx::barrier_wait(barrier(1), 0);
        }
        ptx::barrier_wait(barrier(0), 0);
        copy_out(params, tile(0), ptx::thread_index(), threads);
    }
};

// The barrier expects one of two tiles only. The order in which pieces land decides whether its phase ends too
// early or never.
template <bool Planted>
struct TooFewBytes : Case {
    static constexpr const char *name = "too_few_bytes",
                                *hazard = "copy outlives its phase|deadlock|uninitialised read";
    static DEVICE void run(const Params& params) {
        init_barriers(1);
        if (ptx::thread_index() == 0) {
            ptx::barrier_arrive_expect(barrier(0), Planted ? TILE_BYTES : 2 * TILE_BYTES);
            ptx::load_tile(tile(0), params.input, barrier(0), 0, 0, 0, 0);
            ptx::load_tile(tile(1), params.input, barrier(0), 0, 0, 0, 0);
        }
        ptx::barrier_wait(barrier(0), 0);
        copy_out(params, tile(1), ptx::thread_index(), threads);
    }
};

template <bool Planted>
struct TooManyBytes : Case {
    static constexpr const char *name = "too_many_bytes", *hazard = "deadlock";
    static DEVICE void run(const Params& params) {
        init_barriers(1);
        if (ptx::thread_index() == 0) {
            ptx::barrier_arrive_expect(barrier(0), TILE_BYTES + (Planted ? 16 : 0));
            ptx::load_tile(tile(0), params.input, barrier(0), 0, 0, 0, 0);
        }
        ptx::barrier_wait(barrier(0), 0);
        copy_out(params, tile(0), ptx::thread_index(), threads);
    }
};

template <bool Planted>
struct MisalignedLoad : Case {
    static constexpr const char *name = "misaligned_load", *hazard = "misaligned";
    static DEVICE void run(const Params& params) {
        init_barriers(1);
        if (ptx::thread_index() == 0) {
            ptx::barrier_arrive_expect(barrier(0), TILE_BYTES);
            ptx::load_tile(tile(0) + (Planted ? 64 : 0), params.input, barrier(0), 0, 0, 0, 0);
        }
        ptx::barrier_wait(barrier(0), 0);
        copy_out(params, tile(0), ptx::thread_index(), threads);
    }
};

}  // namespace hazards
