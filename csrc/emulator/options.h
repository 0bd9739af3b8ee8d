// What a test may set before it launches kernels.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

struct Options {
    uint64_t seed = 0;        // every random choice of a launch follows from it
    bool checks = true;       // report hazards that the schedule alone does not show
    int multiprocessors = 3;  // what ptx::multiprocessors() answers
};

Options& options();

inline thread_local bool context_is_bound = false;  // a thread starts without; tensor maps need one

// Once any range is registered, kernels may touch global memory only inside of the registered ranges.
// A range that is not initialised reports reads of bytes that no kernel has written.
void register_global(const void* pointer, size_t bytes, bool initialised = true);
void forget_globals();

}  // namespace emulator
