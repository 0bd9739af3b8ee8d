// The registers that warpgroups give and take from the block's pool.
#pragma once
#include <vector>

#include "emulator/scheduler.h"

namespace emulator {

struct Block;

class RegisterPool {
  public:
    RegisterPool(Block& block, int threads, int blocks_per_multiprocessor);

    void give(int count);
    void take(int count);

    int free() const { return free_; }

  private:
    struct Change {
        int count, lanes = 0;
        bool done = false;
    };
    struct Warpgroup {
        int lanes;
        int registers;  // of each of its threads
        std::vector<Change> changes;
    };

    // The running lane's next change, done once all lanes of the warpgroup have asked and the pool allows.
    Change& ask(const char* operation, int count, bool takes);

    Block& block_;
    int free_;
    std::vector<Warpgroup> warpgroups_;
    std::vector<int> passed_;  // changes by thread
    Queue waiting_;
};

}  // namespace emulator
