// What the lanes of a warp do together: shuffles, votes, and meeting.
#pragma once
#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "emulator/clock.h"
#include "emulator/mark.h"

namespace emulator {

struct Block;

// A round of a named barrier.
struct Round {
    VectorClock clock;
    bool done = false;
    std::vector<int> waiting;
};

// One operation of a whole warp. Lanes reach it at different times, each in its own order of operations.
struct Collective {
    const char* operation;
    uint64_t argument;
    uint32_t arrived = 0, left = 0, waiting = 0;  // lanes
    union {
        uint64_t values[32];
        std::array<uint32_t, 4> fragments[32];  // of matrices
    };
    VectorClock clock;
    std::shared_ptr<Round> round;

    bool complete() const { return arrived == ~0u; }
};

class Warps {
  public:
    explicit Warps(Block& block, int warps) : block_(block), warps_(warps) {}

    // The running lane reaches its next operation; reports when other lanes reached another one there.
    Collective& arrive(const char* operation, uint64_t argument = 0);
    // Parks until all lanes have arrived.
    void wait(Collective& collective);
    void leave(Collective& collective);

    // An operation in which lanes neither wait nor exchange anything.
    void pass(const char* operation, uint64_t argument = 0) { leave(arrive(operation, argument)); }

    // Every lane gives a value and takes that of its source.
    template <class T>
    T exchange(const char* operation, uint64_t argument, T value, int source) {
        static_assert(sizeof(T) <= sizeof(uint64_t));
        check_landed(value, operation);
        uint64_t bits = 0;
        std::memcpy(&bits, &value, sizeof(T));
        bits = exchange_bits(operation, argument, bits, source);
        std::memcpy(&value, &bits, sizeof(T));
        return value;
    }
    bool any(bool condition);
    void sync();

  private:
    uint64_t exchange_bits(const char* operation, uint64_t argument, uint64_t value, int source);

    struct Warp {
        std::deque<Collective> open;
        uint64_t closed = 0;  // operations that all lanes have left
        uint64_t passed[32] = {};
    };

    Block& block_;
    std::vector<Warp> warps_;
};

}  // namespace emulator
