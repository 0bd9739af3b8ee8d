// The sixteen numbered barriers of a block.
#pragma once
#include <memory>
#include <string>

#include "emulator/warps.h"

namespace emulator {

struct Block;

class NamedBarriers {
  public:
    explicit NamedBarriers(Block& block) : block_(block) {}

    void sync(int barrier, int threads);
    void arrive(int barrier, int threads);

    std::string describe(int barrier) const;

  private:
    static constexpr int COUNT = 16;

    struct Barrier {
        int expected = 0, arrived = 0;  // threads; expected is 0 while nobody has arrived
        std::shared_ptr<Round> round;
    };

    // One lane arrives; with its warp's last lane the warp does.
    Collective& lane_arrives(const char* operation, int barrier, int threads);
    std::shared_ptr<Round> warp_arrives(int barrier, int threads, const VectorClock& clock);

    Block& block_;
    Barrier barriers_[COUNT];
};

}  // namespace emulator
