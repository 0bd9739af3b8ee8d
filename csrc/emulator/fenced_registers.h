// One lane's registers that products use, and whether they were written after the fence that is to announce them.
#pragma once
#include <cstddef>
#include <deque>
#include <vector>

namespace emulator {

class FencedRegisters {
  public:
    // The lane fences; skip(registers) tells those that a product in flight may change.
    template <class Skip>
    void fence(const Skip& skip) {
        for (Seen& seen : seen_) {
            const auto* bytes = static_cast<const unsigned char*>(seen.registers);
            seen.at_fence.clear();
            if (!skip(seen.registers)) seen.at_fence.assign(bytes, bytes + seen.bytes);
        }
    }

    // A product is to read these registers: reports when they have changed since the fence. Registers are known
    // from the first product that uses them on.
    void check(const void* registers, size_t bytes);

  private:
    struct Seen {
        const void* registers;
        size_t bytes;
        std::vector<unsigned char> at_fence;  // what they held; empty when that does not count
    };

    static constexpr size_t MOST = 64;

    std::deque<Seen> seen_;  // the latest ones
};

}  // namespace emulator
