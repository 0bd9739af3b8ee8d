// The memory barriers that live in shared memory.
#pragma once
#include <cstdint>
#include <map>
#include <string>

#include "emulator/clock.h"
#include "emulator/scheduler.h"

namespace emulator {

struct Block;

class Barriers {
  public:
    explicit Barriers(Block& block) : block_(block) {}

    void init(uint32_t address, int arrivals);
    void arrive(uint32_t address, int expected_bytes);
    void wait(uint32_t address, int parity);

    // A bulk copy is issued for the current phase: the moment at which its bytes may be read.
    Epoch begin_copy(uint32_t address, int bytes);
    // Bytes of that copy have landed.
    void land(uint32_t address, int bytes);

    // Reports when copies were issued that no thread has waited for.
    void end_block();

    std::string describe(uint32_t address) const;

  private:
    struct Barrier {
        int component;
        Epoch initialised;
        int expected, pending;
        int64_t bytes = 0;      // expected and not yet landed, or below zero: landed and not yet expected
        int64_t in_flight = 0;  // bytes of copies that were issued and have not landed
        uint32_t phase = 0;     // phases completed
        uint32_t last_copied = 0, waited = 0;  // phases that copies were issued for, and that a thread waited for
        VectorClock arriving, completed;
        Queue waiting;
    };

    Barrier& find(uint32_t address, const char* operation);
    void count(uint32_t address, Barrier& barrier, int64_t bytes);
    void complete_if_done(uint32_t address, Barrier& barrier);

    Block& block_;
    std::map<uint32_t, Barrier> barriers_;
};

}  // namespace emulator
