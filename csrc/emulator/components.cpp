#include "emulator/components.h"

#include <stdexcept>

#include "emulator/report.h"

namespace emulator {

int Components::add(Actor actor, uint32_t id) {
    // The last component is the mark of barriers' own bytes.
    if (entries_.size() + 1 >= MAX_COMPONENTS) throw std::runtime_error("the emulator is out of clock components");
    entries_.push_back({actor, id});
    return static_cast<int>(entries_.size()) - 1;
}

std::string Components::describe(Epoch moment) const {
    const uint32_t who = id(moment);
    switch (actor(moment)) {
        case Actor::THREAD: return format("warp %u lane %u", who / 32, who % 32);
        case Actor::COPIES: return format("the copy engine for barrier 0x%x, its phase %u", who, count_of(moment) - 1);
        case Actor::PRODUCTS: return format("a product of warpgroup %u, its group %u", who, count_of(moment) - 1);
        default:
            return format("a bulk store of warp %u lane %u, its group %u", who / 32, who % 32, count_of(moment) - 1);
    }
}

}  // namespace emulator
