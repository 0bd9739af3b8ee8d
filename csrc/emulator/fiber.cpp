// The C library's checked longjmp refuses to change stacks, so it is switched off in this file.
#undef _FORTIFY_SOURCE
#define _FORTIFY_SOURCE 0
#include "emulator/fiber.h"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <new>
#include <vector>

namespace emulator {

namespace {

Fiber* starting;  // makecontext passes only ints

}  // namespace

void Fiber::prepare(char* stack, size_t bytes, void (*entry)(void*), void* argument) {
    stack_ = stack;
    bytes_ = bytes;
    entry_ = entry;
    argument_ = argument;
}

void Fiber::begin() {
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stack_;
    context.uc_stack.ss_size = bytes_;
    context.uc_link = nullptr;
    stack_ = nullptr;
    starting = this;
    makecontext(&context, [] { starting->entry_(starting->argument_); }, 0);
    setcontext(&context);
}

// swapcontext saves the signal mask with a system call; setjmp and longjmp do without.
void Fiber::switch_to(Fiber& next) {
    if (_setjmp(place_) != 0) return;
    if (next.stack_ != nullptr) next.begin();
    _longjmp(next.place_, 1);
}

char* stack(int number) {
    static std::vector<char*> stacks;
    while (static_cast<int>(stacks.size()) <= number) {
        const size_t guard = sysconf(_SC_PAGESIZE);
        void* memory = mmap(nullptr, guard + STACK_BYTES, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        mprotect(memory, guard, PROT_NONE);
        stacks.push_back(static_cast<char*>(memory) + guard);
    }
    return stacks[number];
}

}  // namespace emulator
