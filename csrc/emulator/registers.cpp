#include "emulator/registers.h"

#include <algorithm>

#include "emulator/block.h"
#include "emulator/report.h"

namespace emulator {

namespace {

constexpr int MULTIPROCESSOR_REGISTERS = 64 * 1024;
constexpr int MAX_LAUNCH_REGISTERS = 255;
constexpr int UNIT = 8;
constexpr int LEAST = 24, MOST = 256;

}  // namespace

RegisterPool::RegisterPool(Block& block, int threads, int blocks_per_multiprocessor) : block_(block), passed_(threads) {
    // The compiler may use as many registers as launch_bounds allows, and that is what a launch reserves.
    const int most = std::min(MULTIPROCESSOR_REGISTERS / (threads * blocks_per_multiprocessor), MAX_LAUNCH_REGISTERS);
    const int at_launch = most == MAX_LAUNCH_REGISTERS ? MOST : most / UNIT * UNIT;
    free_ = 0;
    for (int first = 0; first < threads; first += 128)
        warpgroups_.push_back({std::min(128, threads - first), at_launch, {}});
}

RegisterPool::Change& RegisterPool::ask(const char* operation, int count, bool takes) {
    const int thread = block_.scheduler.running();
    Warpgroup& group = warpgroups_[thread / 128];
    block_.warps.pass(operation, count);
    if (count % UNIT != 0 || count < LEAST || count > MOST)
        report(hazard::REGISTERS, format("%s of %d: a multiple of 8 from 24 to 256 is wanted", operation, count));
    const size_t place = passed_[thread]++;
    if (place == group.changes.size()) {
        group.changes.push_back({count});
        if (takes ? count < group.registers : count > group.registers)
            report(hazard::REGISTERS, format("%s of %d by warpgroup %d, whose threads have %d", operation, count,
                                             thread / 128, group.registers));
    }
    Change& change = group.changes[place];
    if (change.count != count)
        report(hazard::REGISTERS, format("%s of %d where other warps of warpgroup %d ask for %d", operation, count,
                                         thread / 128, change.count));
    ++change.lanes;
    return change;
}

void RegisterPool::give(int count) {
    Warpgroup& group = warpgroups_[block_.scheduler.running() / 128];
    Change& change = ask("give_registers", count, false);
    if (change.lanes < group.lanes) return;
    change.done = true;
    free_ += (group.registers - count) * group.lanes;
    group.registers = count;
    block_.scheduler.wake(waiting_);
}

void RegisterPool::take(int count) {
    const int thread = block_.scheduler.running();
    Warpgroup& group = warpgroups_[thread / 128];
    ask("take_registers", count, true);
    const size_t place = passed_[thread] - 1;
    for (;;) {
        // Others' changes move this list, so the place is looked up again after every wait.
        Change& change = group.changes[place];
        const int wanted = (count - group.registers) * group.lanes;
        if (!change.done && change.lanes == group.lanes && wanted <= free_) {
            change.done = true;
            free_ -= wanted;
            group.registers = count;
            block_.scheduler.wake(waiting_);
        }
        if (change.done) return;
        block_.scheduler.park(waiting_, {"take_registers", 0, count});
    }
}

}  // namespace emulator
