// Who may read and write memory on its own account: the components of the vector clocks.
#pragma once
#include <string>
#include <vector>

#include "emulator/clock.h"

namespace emulator {

enum class Actor { THREAD, COPIES, PRODUCTS, STORES };

class Components {
  public:
    // id: a thread's number, a barrier's address, a warpgroup's number, a storing thread's number.
    int add(Actor actor, uint32_t id);

    Actor actor(Epoch moment) const { return entries_[component_of(moment)].actor; }
    uint32_t id(Epoch moment) const { return entries_[component_of(moment)].id; }
    std::string describe(Epoch moment) const;

  private:
    struct Entry {
        Actor actor;
        uint32_t id;
    };
    std::vector<Entry> entries_;
};

}  // namespace emulator
