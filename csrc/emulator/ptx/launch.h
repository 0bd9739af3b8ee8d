// Runs a kernel: a struct with Params, `threads`, `shared_bytes`, `name`, and run(params) for one thread.
#pragma once
#include <cstdint>
#include <cstring>

#include "emulator/block.h"
#include "emulator/global_memory.h"
#include "emulator/options.h"

namespace ptx {

using Stream = void*;

inline void bind_context() { emulator::context_is_bound = true; }

inline int multiprocessors() { return emulator::options().multiprocessors; }

inline void set_zero(void* pointer, int64_t bytes, Stream) {
    emulator::check_global_write(pointer, bytes, 1, "set_zero");
    std::memset(pointer, 0, bytes);
}

// Returns when the kernel has run.
template <class Kernel>
void launch(const typename Kernel::Params& params, int blocks, Stream) {
    const emulator::Grid grid = {Kernel::name, Kernel::threads, Kernel::shared_bytes, Kernel::blocks_per_multiprocessor,
                                 blocks};
    emulator::run(grid, [](const void* p) { Kernel::run(*static_cast<const typename Kernel::Params*>(p)); }, &params);
}

}  // namespace ptx
