// What each thread of the block knows to have happened, and how that spreads.
#pragma once
#include <vector>

#include "emulator/clock.h"
#include "emulator/components.h"
#include "emulator/shadow.h"

namespace emulator {

class Order {
  public:
    explicit Order(int threads) : clocks_(threads), async_fences_(threads), barrier_fences_(threads) {
        for (int i = 0; i < threads; ++i) clocks_[i].raise(components.add(Actor::THREAD, i), 1);
    }

    const VectorClock& clock(int thread) const { return clocks_[thread]; }
    Epoch now(int thread) const { return epoch(thread, clocks_[thread].at(thread)); }

    // Whoever acquires `into` knows what this thread has done so far.
    void release(int thread, VectorClock& into);
    void acquire(int thread, const VectorClock& from) { clocks_[thread].join(from); }
    void learn(int thread, int component, uint32_t count) { clocks_[thread].raise(component, count); }

    void fence_async(int thread) { fence(async_fences_, thread); }
    void fence_barriers(int thread) { fence(barrier_fences_, thread); }
    const Fences& async_fences() const { return async_fences_; }
    const Fences& barrier_fences() const { return barrier_fences_; }

    Components components;

  private:
    void fence(Fences& fences, int thread);

    std::vector<VectorClock> clocks_;
    Fences async_fences_;
    Fences barrier_fences_;
};

}  // namespace emulator
