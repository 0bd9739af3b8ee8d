#include "emulator/named_barriers.h"

#include "emulator/block.h"
#include "emulator/report.h"

namespace emulator {

Collective& NamedBarriers::lane_arrives(const char* operation, int barrier, int threads) {
    block_.scheduler.step(16);
    if (barrier < 0 || barrier >= COUNT) report(hazard::NAMED_BARRIER, format("there is no barrier %d", barrier));
    if (threads <= 0 || threads % 32 != 0 || threads > block_.threads)
        report(hazard::NAMED_BARRIER, format("%s of %d threads on barrier %d", operation, threads, barrier));
    Collective& warp = block_.warps.arrive(operation, static_cast<uint64_t>(threads) << 8 | barrier);
    if (block_.checks) block_.order.release(block_.scheduler.running(), warp.clock);
    if (warp.complete()) warp.round = warp_arrives(barrier, threads, warp.clock);
    return warp;
}

std::shared_ptr<Round> NamedBarriers::warp_arrives(int number, int threads, const VectorClock& clock) {
    Barrier& barrier = barriers_[number];
    if (barrier.expected == 0) {
        barrier.expected = threads;
        barrier.round = std::make_shared<Round>();
    }
    if (barrier.expected != threads)
        report(hazard::NAMED_BARRIER,
               format("barrier %d is used for %d threads while it collects %d", number, threads, barrier.expected));
    std::shared_ptr<Round> round = barrier.round;
    if (block_.checks) round->clock.join(clock);
    barrier.arrived += 32;
    if (barrier.arrived == barrier.expected) {
        round->done = true;
        block_.scheduler.wake(round->waiting);
        barrier = Barrier();
    }
    return round;
}

void NamedBarriers::sync(int barrier, int threads) {
    Collective& warp = lane_arrives("named_barrier_sync", barrier, threads);
    block_.warps.wait(warp);
    while (!warp.round->done)
        block_.scheduler.park(warp.round->waiting, {"named_barrier_sync", static_cast<uint32_t>(barrier), threads});
    if (block_.checks) block_.order.acquire(block_.scheduler.running(), warp.round->clock);
    block_.warps.leave(warp);
}

void NamedBarriers::arrive(int barrier, int threads) {
    block_.warps.leave(lane_arrives("named_barrier_arrive", barrier, threads));
}

std::string NamedBarriers::describe(int barrier) const {
    return format("(%d: %d of %d threads are there)", barrier, barriers_[barrier].arrived, barriers_[barrier].expected);
}

}  // namespace emulator
