#include "emulator/barriers.h"

#include <algorithm>

#include "emulator/block.h"
#include "emulator/report.h"

namespace emulator {

namespace {

constexpr int BYTES = 8;
constexpr int MAX_ARRIVALS = (1 << 20) - 1;
constexpr int64_t MAX_TX = (1 << 20) - 1;

}  // namespace

void Barriers::init(uint32_t address, int arrivals) {
    const int thread = block_.scheduler.running();
    block_.shared.check(address, BYTES, BYTES, "barrier_init");
    if (barriers_.count(address) != 0) report(hazard::BARRIER_TWICE, format("shared address 0x%x", address));
    if (arrivals < 1 || arrivals > MAX_ARRIVALS)
        report(hazard::ARRIVALS, format("barrier 0x%x initialised with %d arrivals", address, arrivals));
    Barrier& barrier = barriers_[address];
    barrier.component = block_.order.components.add(Actor::COPIES, address);
    barrier.initialised = block_.order.now(thread);
    barrier.expected = barrier.pending = arrivals;
    if (block_.checks) {
        block_.shadow.write(address, BYTES, block_.order.clock(thread), barrier.initialised, false);
        block_.shadow.claim_barrier(address, BYTES);
    }
    block_.scheduler.step(16);
}

Barriers::Barrier& Barriers::find(uint32_t address, const char* operation) {
    block_.shared.check(address, BYTES, BYTES, operation);
    const auto found = barriers_.find(address);
    if (found == barriers_.end())
        report(hazard::BARRIER_UNINITIALISED, format("%s at shared address 0x%x", operation, address));
    Barrier& barrier = found->second;
    if (block_.checks && !block_.order.clock(block_.scheduler.running()).covers(barrier.initialised))
        report(hazard::RACE, format("%s on barrier 0x%x, not ordered after its initialisation by %s", operation,
                                    address, block_.order.components.describe(barrier.initialised).c_str()));
    return barrier;
}

void Barriers::arrive(uint32_t address, int expected_bytes) {
    block_.scheduler.step(16);
    Barrier& barrier = find(address, "barrier_arrive");
    count(address, barrier, expected_bytes);
    if (barrier.pending == 0)
        report(hazard::ARRIVALS,
               format("barrier 0x%x has all %d arrivals of its phase %u", address, barrier.expected, barrier.phase));
    if (block_.checks) block_.order.release(block_.scheduler.running(), barrier.arriving);
    --barrier.pending;
    complete_if_done(address, barrier);
    block_.scheduler.step(16);
}

void Barriers::count(uint32_t address, Barrier& barrier, int64_t bytes) {
    barrier.bytes += bytes;
    if (barrier.bytes > MAX_TX || barrier.bytes < -MAX_TX)
        report(hazard::TX_COUNT,
               format("barrier 0x%x stands at %lld bytes", address, static_cast<long long>(barrier.bytes)));
}

void Barriers::complete_if_done(uint32_t address, Barrier& barrier) {
    if (barrier.pending != 0 || barrier.bytes != 0) return;
    if (block_.checks && barrier.in_flight != 0)
        report(hazard::LATE_COPY, format("phase %u of barrier 0x%x ends while %lld bytes of its copies are in flight",
                                         barrier.phase, address, static_cast<long long>(barrier.in_flight)));
    ++barrier.phase;
    barrier.pending = barrier.expected;
    if (block_.checks) {
        barrier.completed = barrier.arriving;
        barrier.completed.raise(barrier.component, barrier.phase);
    }
    block_.scheduler.wake(barrier.waiting);
}

void Barriers::wait(uint32_t address, int parity) {
    block_.scheduler.step(16);
    if (parity != 0 && parity != 1)
        report(hazard::OUT_OF_BOUNDS, format("parity %d waited for on barrier 0x%x", parity, address));
    Barrier& barrier = find(address, "barrier_wait");
    while (static_cast<int>(barrier.phase & 1) == parity)
        block_.scheduler.park(barrier.waiting, {"barrier_wait", address, parity});
    barrier.waited = std::max(barrier.waited, barrier.phase);
    if (block_.checks) block_.order.acquire(block_.scheduler.running(), barrier.completed);
}

Epoch Barriers::begin_copy(uint32_t address, int bytes) {
    Barrier& barrier = find(address, "a bulk copy");
    barrier.in_flight += bytes;
    barrier.last_copied = barrier.phase + 1;
    const int owner = component_of(barrier.initialised);
    if (block_.checks && !fenced_between(block_.order.barrier_fences()[owner], barrier.initialised,
                                         block_.order.clock(block_.scheduler.running())))
        report(hazard::BARRIER_FENCE,
               format("barrier 0x%x, initialised by warp %d lane %d", address, owner / 32, owner % 32));
    return epoch(barrier.component, barrier.phase + 1);
}

void Barriers::land(uint32_t address, int bytes) {
    Barrier& barrier = barriers_.at(address);
    barrier.in_flight -= bytes;
    count(address, barrier, -static_cast<int64_t>(bytes));
    complete_if_done(address, barrier);
}

void Barriers::end_block() {
    for (const auto& [address, barrier] : barriers_)
        if (barrier.last_copied > barrier.waited)
            report(hazard::UNFINISHED, format("no thread has waited for the copies of barrier 0x%x in its phase %u",
                                              address, barrier.last_copied - 1));
}

std::string Barriers::describe(uint32_t address) const {
    const auto found = barriers_.find(address);
    if (found == barriers_.end()) return format("(0x%x, no barrier)", address);
    const Barrier& barrier = found->second;
    return format("(0x%x: phase %u, %d of %d arrivals and %lld bytes to come)", address, barrier.phase, barrier.pending,
                  barrier.expected, static_cast<long long>(barrier.bytes));
}

}  // namespace emulator
