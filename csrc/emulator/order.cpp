#include "emulator/order.h"

#include <stdexcept>

namespace emulator {

void Order::release(int thread, VectorClock& into) {
    into.join(clocks_[thread]);
    const uint32_t count = clocks_[thread].at(thread) + 1;
    if (count >= MAX_COUNT) throw std::runtime_error("the emulator is out of clock counts");
    clocks_[thread].raise(thread, count);
}

void Order::fence(Fences& fences, int thread) {
    const uint32_t count = clocks_[thread].at(thread);
    if (fences[thread].empty() || fences[thread].back() < count) fences[thread].push_back(count);
}

}  // namespace emulator
