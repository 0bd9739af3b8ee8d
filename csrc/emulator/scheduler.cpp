#include "emulator/scheduler.h"

#include <cstring>

#include "emulator/report.h"

namespace emulator {

Scheduler::Scheduler(int threads, Random& random)
    : random_(random), threads_(threads), fibers_(threads), waits_(threads), ready_lanes_((threads + 31) / 32) {}

void Scheduler::run(Body body, const void* params) {
    body_ = body;
    params_ = params;
    alive_ = threads_;
    for (int i = 0; i < threads_; ++i) {
        fibers_[i].prepare(stack(i), STACK_BYTES, enter, this);
        wake(i);
    }
    running_ = next();
    main_.switch_to(fibers_[running_]);
    running_ = NOBODY;
    if (error_) std::rethrow_exception(error_);
    on_block_end();
    while (run_task(true)) continue;
}

void Scheduler::enter(void* self) { static_cast<Scheduler*>(self)->thread_main(); }

void Scheduler::thread_main() {
    int following = NOBODY;
    try {
        body_(params_);
        on_thread_end(running_);
        waits_[running_] = {};
        --alive_;
        following = next();
        if (following == NOBODY && alive_ > 0) report_deadlock();
    } catch (...) {
        error_ = std::current_exception();
    }
    Fiber& mine = fibers_[running_];
    if (error_ || following == NOBODY) {
        mine.switch_to(main_);
    } else {
        running_ = following;
        mine.switch_to(fibers_[following]);
    }
}

// The thread to run next, taken from the ready ones, or nobody when none will ever be ready.
int Scheduler::next() {
    if (ready_warps_ != 0 && random_.below(16) == 0) run_task(false);
    while (ready_warps_ == 0)
        if (alive_ == 0 || !run_task(true)) return NOBODY;
    if (until_new_slow_warps_-- == 0) {
        until_new_slow_warps_ = random_.below(512);
        const int warps = static_cast<int>(ready_lanes_.size());
        const uint32_t choices[] = {0, 1u << random_.below(warps), 15u << random_.below(warps) / 4 * 4};
        slow_warps_ = choices[random_.below(3)];
    }
    const uint32_t fast = ready_warps_ & ~slow_warps_;
    const uint32_t eligible = fast != 0 ? fast : ready_warps_;
    int warp = running_ == NOBODY ? 0 : running_ / 32;
    // Lanes of one warp mostly run together, which is also what keeps their stacks in the caches.
    if ((eligible >> warp & 1) == 0 || random_.below(64) == 0) warp = random_.bit(eligible);
    const int lane = random_.bit(ready_lanes_[warp]);
    ready_lanes_[warp] &= ~(1u << lane);
    if (ready_lanes_[warp] == 0) ready_warps_ &= ~(1u << warp);
    return warp * 32 + lane;
}

void Scheduler::switch_to_next() {
    const int self = running_;
    const int following = next();
    if (following == NOBODY) report_deadlock();
    if (following == self) return;
    running_ = following;
    fibers_[self].switch_to(fibers_[following]);
}

void Scheduler::step(int weight) {
    budget_ -= weight;
    if (budget_ > 0) return;
    budget_ = 1 + random_.below(512);
    wake(running_);
    switch_to_next();
}

void Scheduler::park(const Wait& wait) {
    waits_[running_] = wait;
    switch_to_next();
}

void Scheduler::park(Queue& queue, const Wait& wait) {
    queue.push_back(running_);
    park(wait);
}

void Scheduler::wake(int thread) {
    ready_lanes_[thread / 32] |= 1u << thread % 32;
    ready_warps_ |= 1u << thread / 32;
}

void Scheduler::wake(Queue& queue) {
    for (int thread : queue) wake(thread);
    queue.clear();
}

void Scheduler::wake_lanes(int warp, uint32_t lanes) {
    if (lanes == 0) return;
    ready_lanes_[warp] |= lanes;
    ready_warps_ |= 1u << warp;
}

void Scheduler::post(std::function<void()> task) { tasks_[random_.below(PATIENCES)].push_back(std::move(task)); }

bool Scheduler::run_task(bool stalled) {
    for (int patience = 0; patience < (stalled ? PATIENCES : 1); ++patience) {
        auto& tasks = tasks_[patience];
        if (tasks.empty()) continue;
        std::swap(tasks[random_.below(static_cast<int>(tasks.size()))], tasks.back());
        const auto task = std::move(tasks.back());
        tasks.pop_back();
        task();
        return true;
    }
    return false;
}

void Scheduler::report_deadlock() {
    // Nobody is ready, so every thread that has not ended is parked; its wait says where.
    std::string text;
    const char* name = hazard::DEADLOCK;
    for (int first = 0; first < threads_;) {
        const Wait& wait = waits_[first];
        int last = first;
        while (last + 1 < threads_ && (last + 1) % 32 != 0 && waits_[last + 1].operation == wait.operation &&
               waits_[last + 1].address == wait.address && waits_[last + 1].detail == wait.detail)
            ++last;
        if (wait.operation != nullptr)
            text += format("%swarp %d lanes %d-%d wait in %s%s", text.empty() ? "" : "; ", first / 32, first % 32,
                           last % 32, wait.operation, explain(wait).c_str());
        if (wait.operation != nullptr && std::strcmp(wait.operation, "take_registers") == 0) name = hazard::REGISTERS;
        first = last + 1;
    }
    report(name, text);
}

}  // namespace emulator
