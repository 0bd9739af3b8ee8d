// A ring of stages in shared memory between a producer and its consumers: each stage has a barrier that says
// it is full and one that says it is empty.
#pragma once
#include <ptx/mbarrier.h>

namespace core {

template <int Stages>
struct Ring {
    int stage = 0, phase = 0;

    DEVICE void next() {
        if (++stage == Stages) stage = 0, phase ^= 1;
    }
    DEVICE Ring previous() const { return stage == 0 ? Ring{Stages - 1, phase ^ 1} : Ring{stage - 1, phase}; }
};

// Barriers of one ring, side by side: first the full ones, then the empty ones.
template <int Stages>
struct RingBarriers {
    static constexpr int BYTES = 2 * Stages * ptx::BARRIER_BYTES;
    uint32_t address;

    DEVICE uint32_t full(const Ring<Stages>& at) const { return address + at.stage * ptx::BARRIER_BYTES; }
    DEVICE uint32_t empty(const Ring<Stages>& at) const { return address + (Stages + at.stage) * ptx::BARRIER_BYTES; }

    // One thread brings the data; `consumers` threads say that they no longer need it.
    DEVICE void init(int consumers) const {
        for (int stage = 0; stage < Stages; ++stage) {
            ptx::barrier_init(address + stage * ptx::BARRIER_BYTES, 1);
            ptx::barrier_init(address + (Stages + stage) * ptx::BARRIER_BYTES, consumers);
        }
    }
    // Producer: waits until the stage is free, then announces the bytes to come. All stages start out free.
    DEVICE void wait_empty(const Ring<Stages>& at) const { ptx::barrier_wait(empty(at), at.phase ^ 1); }
    DEVICE void announce(const Ring<Stages>& at, int bytes) const { ptx::barrier_arrive_expect(full(at), bytes); }
    DEVICE void begin_fill(const Ring<Stages>& at, int bytes) const {
        wait_empty(at);
        announce(at, bytes);
    }
    DEVICE void wait_full(const Ring<Stages>& at) const { ptx::barrier_wait(full(at), at.phase); }
    DEVICE void release(const Ring<Stages>& at) const { ptx::barrier_arrive(empty(at)); }
};

}  // namespace core
