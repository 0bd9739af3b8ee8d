// The one source of chance of a launch.
#pragma once
#include <cstdint>
#include <random>

namespace emulator {

class Random {
  public:
    explicit Random(uint64_t seed) : engine_(seed) {}

    int below(int bound) { return static_cast<int>(engine_() % static_cast<uint64_t>(bound)); }

    // One of the bits of a mask that is not 0.
    int bit(uint32_t mask) {
        const int turn = below(32);
        const uint32_t turned = turn == 0 ? mask : mask >> turn | mask << (32 - turn);
        return (__builtin_ctz(turned) + turn) % 32;
    }

  private:
    std::mt19937_64 engine_;
};

}  // namespace emulator
