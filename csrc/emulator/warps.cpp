#include "emulator/warps.h"

#include <cstring>

#include "emulator/block.h"
#include "emulator/report.h"

namespace emulator {

Collective& Warps::arrive(const char* operation, uint64_t argument) {
    const int thread = block_.scheduler.running(), lane = thread % 32;
    Warp& warp = warps_[thread / 32];
    const uint64_t place = warp.passed[lane]++ - warp.closed;
    if (place == warp.open.size()) {
        warp.open.emplace_back();
        warp.open.back().operation = operation;
        warp.open.back().argument = argument;
    }
    Collective& collective = warp.open[place];
    if (std::strcmp(collective.operation, operation) != 0 || collective.argument != argument)
        report(hazard::DIVERGENT_WARP, format("%s (%llu) where other lanes are in %s (%llu)", operation,
                                              static_cast<unsigned long long>(argument), collective.operation,
                                              static_cast<unsigned long long>(collective.argument)));
    collective.arrived |= 1u << lane;
    return collective;
}

void Warps::wait(Collective& collective) {
    const int thread = block_.scheduler.running();
    if (collective.complete()) {
        block_.scheduler.wake_lanes(thread / 32, collective.waiting);
        collective.waiting = 0;
    }
    while (!collective.complete()) {
        collective.waiting |= 1u << thread % 32;
        block_.scheduler.park({collective.operation, Wait::NOWHERE, static_cast<int>(collective.argument)});
    }
}

void Warps::leave(Collective& collective) {
    const int thread = block_.scheduler.running();
    collective.left |= 1u << thread % 32;
    Warp& warp = warps_[thread / 32];
    while (!warp.open.empty() && warp.open.front().left == ~0u) {
        warp.open.pop_front();
        ++warp.closed;
    }
}

uint64_t Warps::exchange_bits(const char* operation, uint64_t argument, uint64_t value, int source) {
    Collective& collective = arrive(operation, argument);
    collective.values[block_.scheduler.running() % 32] = value;
    wait(collective);
    const uint64_t result = collective.values[source];
    leave(collective);
    return result;
}

bool Warps::any(bool condition) {
    Collective& collective = arrive("any_lane");
    collective.values[block_.scheduler.running() % 32] = condition;
    wait(collective);
    bool result = false;
    for (uint64_t value : collective.values) result |= value != 0;
    leave(collective);
    return result;
}

// Shuffles and votes order no memory accesses; this does.
void Warps::sync() {
    const int thread = block_.scheduler.running();
    Collective& collective = arrive("warp_sync");
    if (block_.checks) block_.order.release(thread, collective.clock);
    wait(collective);
    if (block_.checks) block_.order.acquire(thread, collective.clock);
    leave(collective);
}

}  // namespace emulator
