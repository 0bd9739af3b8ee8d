// A context of execution with a stack of its own.
#pragma once
#include <csetjmp>
#include <cstddef>

namespace emulator {

class Fiber {
  public:
    // A fiber made without prepare() stands for the context that switches away from it first.
    Fiber() = default;
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // The next switch to this fiber calls entry(argument), which must not return.
    void prepare(char* stack, size_t bytes, void (*entry)(void*), void* argument);

    // Leaves this fiber, the running one, for another.
    void switch_to(Fiber& next);

  private:
    void begin();

    jmp_buf place_;
    char* stack_ = nullptr;  // of a prepared fiber that has not begun
    size_t bytes_ = 0;
    void (*entry_)(void*) = nullptr;
    void* argument_ = nullptr;
};

constexpr size_t STACK_BYTES = 128 * 1024;

// The stack of this number; stacks are mapped once, with a guard page below each, and used again.
char* stack(int number);

}  // namespace emulator
