// Runs the threads of a block as fibers, in an order and with delays drawn at random.
#pragma once
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "emulator/fiber.h"
#include "emulator/random.h"

namespace emulator {

// What a thread waits for, kept as numbers until somebody asks.
struct Wait {
    static constexpr uint32_t NOWHERE = ~0u;

    const char* operation;
    uint32_t address;
    int detail;
};

// Threads parked until an event, by number.
using Queue = std::vector<int>;

class Scheduler {
  public:
    using Body = void (*)(const void* params);

    Scheduler(int threads, Random& random);

    // Runs body(params) in every thread to its end, and all that they started.
    void run(Body body, const void* params);

    // A place where other threads may go first, the likelier the greater the weight.
    void step(int weight);

    // Parks the running thread; the caller looks again at its condition afterwards.
    void park(Queue& queue, const Wait& wait);
    void park(const Wait& wait);

    void wake(Queue& queue);
    void wake(int thread);
    void wake_lanes(int warp, uint32_t lanes);

    // Work of an asynchronous unit, done at some later step.
    void post(std::function<void()> task);

    int running() const { return running_; }

    // Called when a thread ends, and when all have.
    std::function<void(int thread)> on_thread_end;
    std::function<void()> on_block_end;
    // More about a wait, for the report of a deadlock.
    std::function<std::string(const Wait&)> explain;

  private:
    static void enter(void* self);
    void thread_main();
    void switch_to_next();
    int next();
    bool run_task(bool stalled);
    [[noreturn]] void report_deadlock();

    static constexpr int NOBODY = -1;
    static constexpr int PATIENCES = 3;

    Random& random_;
    int threads_;
    Body body_ = nullptr;
    const void* params_ = nullptr;
    Fiber main_;
    std::deque<Fiber> fibers_;
    std::vector<Wait> waits_;
    std::vector<uint32_t> ready_lanes_;  // by warp
    uint32_t ready_warps_ = 0;
    uint32_t slow_warps_ = 0;  // run only when no other warp can
    int until_new_slow_warps_ = 0;
    int running_ = NOBODY;
    int alive_ = 0;
    int budget_ = 1;
    // Tasks by patience: done at any step, when all threads wait, when all threads wait and nothing else is left.
    std::vector<std::function<void()>> tasks_[PATIENCES];
    std::exception_ptr error_;
};

}  // namespace emulator
