// Hazards of products: each planted when Planted, and absent from its twin.
#pragma once
#include "hazard_case.h"

namespace hazards {

// The input in tile 0, the identity in tile 1, waited for by all.
DEVICE void load_operands(const Params& params) {
    init_barriers(2);
    if (ptx::thread_index() == 0) {
        load(0, params.input, 0);
        load(1, params.identity, 1);
    }
    ptx::barrier_wait(barrier(0), 0);
    ptx::barrier_wait(barrier(1), 0);
}

template <bool Planted>
struct ProductUnwaitedOperand : Case {
    static constexpr const char *name = "product_unwaited_operand", *hazard = "read before the copy was waited for";
    static DEVICE void run(const Params& params) {
        init_barriers(2);
        if (ptx::thread_index() == 0) {
            load(0, params.input, 0);
            load(1, params.identity, 1);
        }
        ptx::barrier_wait(barrier(0), 0);
        if (!Planted || ptx::warp_index() < 3) ptx::barrier_wait(barrier(1), 0);
        float d[32];
        ptx::products_fence();
        multiply(d, 0, 1);
        ptx::products_commit();
        ptx::products_wait<0>();
        store_result(params, d);
    }
};

// A stage is given back before the products that read it were waited for.
template <bool Planted>
struct OperandOverwritten : Case {
    static constexpr const char *name = "operand_overwritten", *hazard = "overwrite of an operand still being read";
    static DEVICE void run(const Params& params) {
        load_operands(params);
        float d[32];
        ptx::products_fence();
        multiply(d, 0, 1);
        ptx::products_commit();
        if (!Planted) ptx::products_wait<0>();
        ptx::block_sync();
        if (ptx::thread_index() == 0) load(0, params.identity, 0);
        ptx::barrier_wait(barrier(0), 1);
        ptx::products_wait<0>();
        store_result(params, d);
    }
};

// As above by ordinary stores.
template <bool Planted>
struct OperandStoredOver : Case {
    static constexpr const char *name = "operand_stored_over", *hazard = "overwrite of an operand still being read";
    static DEVICE void run(const Params& params) {
        load_operands(params);
        float d[32];
        ptx::products_fence();
        multiply(d, 0, 1);
        ptx::products_commit();
        ptx::products_wait<Planted ? 1 : 0>();
        for (int i = ptx::thread_index(); i < WORDS; i += threads) ptx::store_shared(word(tile(0), i), 0.0f);
        ptx::products_wait<0>();
        store_result(params, d);
    }
};

template <bool Planted>
struct OperandUnfenced : Case {
    static constexpr const char *name = "operand_unfenced", *hazard = "missing async-proxy fence";
    static DEVICE void run(const Params& params) {
        load_operands(params);
        copy_in(params, tile(2), ptx::thread_index(), threads);
        if (!Planted) ptx::fence_async();
        ptx::block_sync();
        float d[32];
        ptx::products_fence();
        multiply(d, 2, 1);
        ptx::products_commit();
        ptx::products_wait<0>();
        store_result(params, d);
    }
};

// A warp's own rows of the left operand need no more than the warp's agreement.
template <bool Planted>
struct OperandUnordered : Case {
    static constexpr const char *name = "operand_unordered", *hazard = "race|overwrite of an operand still being read";
    static DEVICE void run(const Params& params) {
        load_operands(params);
        const int warp = ptx::warp_index(), writer = Planted ? warp ^ 1 : warp;
        for (int i = ptx::lane_index(); i < WORDS / 4; i += 32) {
            const int place = writer * (WORDS / 4) + i;
            ptx::store_shared(word(tile(2), place), ptx::load_global(params.words + place));
        }
        ptx::fence_async();
        ptx::warp_sync();
        float d[32];
        ptx::products_fence();
        multiply(d, 2, 1);
        ptx::products_commit();
        ptx::products_wait<0>();
        store_result(params, d);
    }
};

template <bool Planted>
struct ProductUnfenced : Case {
    static constexpr const char *name = "product_unfenced", *hazard = "missing products fence";
    static DEVICE void run(const Params& params) {
        load_operands(params);
        float d[32];
        for (int round = 0; round < 2; ++round) {
            if (!Planted || round == 0) ptx::products_fence();
            multiply(d, 0, 1);
            ptx::products_commit();
            ptx::products_wait<0>();
        }
        store_result(params, d);
    }
};

// Accumulators are scaled after the fence.
template <bool Planted>
struct FencedTooEarly : Case {
    static constexpr const char *name = "fenced_too_early", *hazard = "missing products fence";
    static DEVICE void run(const Params& params) {
        load_operands(params);
        float d[32];
        for (float& x : d) x = 0;
        for (int round = 0; round < 3; ++round) {
            if (Planted) ptx::products_fence();
            for (float& x : d) x *= 0;
            if (!Planted) ptx::products_fence();
            multiply(d, 0, 1, true);
            ptx::products_commit();
            ptx::products_wait<0>();
        }
        store_result(params, d);
    }
};

template <bool Planted>
struct FragmentsModified : Case {
    static constexpr const char *name = "fragments_modified",
                                *hazard = "register operand modified while a product reads it";
    static DEVICE void run(const Params& params) {
        load_operands(params);
        float d[32];
        uint32_t a[16];
        load_fragments(params, a);
        ptx::products_fence();
        for (int k = 0; k < 4; ++k)
            ptx::Product<ptx::bf16, 64>::registers<ptx::K_MAJOR>(
                d, a + 4 * k, ptx::advance(ptx::operand(tile(1), 1024), 32 * k), k > 0);
        ptx::products_commit();
        if (!Planted) ptx::products_wait<0>();
        for (uint32_t& pair : a) pair ^= 1;
        ptx::products_wait<0>();
        store_result(params, d);
    }
};

template <bool Planted>
struct AccumulatorModified : Case {
    static constexpr const char *name = "accumulator_modified",
                                *hazard = "accumulator modified while a product writes it";
    static DEVICE void run(const Params& params) {
        load_operands(params);
        float d[32];
        ptx::products_fence();
        multiply(d, 0, 1);
        ptx::products_commit();
        ptx::products_wait<Planted ? 1 : 0>();
        for (float& x : d) x += 0;
        ptx::products_wait<0>();
        store_result(params, d);
    }
};

template <bool Planted>
struct DivergentProduct : Case {
    static constexpr const char *name = "divergent_product", *hazard = "divergent product";
    static DEVICE void run(const Params& params) {
        load_operands(params);
        float d[32];
        ptx::products_fence();
        multiply(d, 0, Planted && ptx::warp_index() == 2 ? 0 : 1);
        ptx::products_commit();
        ptx::products_wait<0>();
        store_result(params, d);
    }
};

template <bool Planted>
struct WarpLeftOut : Case {
    static constexpr const char *name = "warp_left_out", *hazard = "deadlock";
    static DEVICE void run(const Params& params) {
        load_operands(params);
        if (Planted && ptx::warp_index() == 2) return;
        float d[32];
        ptx::products_fence();
        multiply(d, 0, 1);
        ptx::products_commit();
        ptx::products_wait<0>();
        store_result(params, d);
    }
};

template <bool Planted>
struct ProductLeftBehind : Case {
    static constexpr const char *name = "product_left_behind", *hazard = "exit before asynchronous work was waited for";
    static DEVICE void run(const Params& params) {
        load_operands(params);
        float d[32], forgotten[32];
        ptx::products_fence();
        multiply(d, 0, 1);
        ptx::products_commit();
        ptx::products_wait<0>();
        store_result(params, d);
        ptx::products_fence();
        multiply(forgotten, 0, 1);
        if (!Planted) ptx::products_commit();
        ptx::products_wait<0>();
    }
};

template <bool Planted>
struct BadDescriptor : Case {
    static constexpr const char *name = "bad_descriptor", *hazard = "bad operand descriptor";
    static DEVICE void run(const Params& params) {
        load_operands(params);
        float d[32];
        const uint64_t a = ptx::operand(tile(0), Planted ? 512 : 1024), b = ptx::operand(tile(1), 1024);
        ptx::products_fence();
        for (int k = 0; k < 4; ++k)
            ptx::Product<ptx::bf16, 64>::shared<ptx::K_MAJOR, ptx::K_MAJOR>(d, ptx::advance(a, 32 * k),
                                                                            ptx::advance(b, 32 * k), k > 0);
        ptx::products_commit();
        ptx::products_wait<0>();
        store_result(params, d);
    }
};

template <bool Planted>
struct AccumulatorReadEarly : Case {
    static constexpr const char *name = "accumulator_read_early",
                                *hazard = "accumulator read before its product was waited for";
    static DEVICE void run(const Params& params) {
        load_operands(params);
        float d[32];
        ptx::products_fence();
        multiply(d, 0, 1);
        ptx::products_commit();
        ptx::products_wait<Planted ? 1 : 0>();
        store_result(params, d);
        ptx::products_wait<0>();
    }
};

}  // namespace hazards
