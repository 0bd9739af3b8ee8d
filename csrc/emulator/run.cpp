// Launches, and the reports of what went wrong in them.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "emulator/block.h"
#include "emulator/options.h"
#include "emulator/report.h"

namespace emulator {

Block* running_block = nullptr;

namespace {

constexpr int MAX_THREADS = 1024;
constexpr int MULTIPROCESSOR_SHARED_BYTES = 228 * 1024;
constexpr int RESERVED_SHARED_BYTES = 1024;  // of every block

void check_grid(const Grid& grid) {
    const auto refuse = [&grid](const std::string& why) {
        throw std::runtime_error(format("%s: kernel %s: %s", hazard::LAUNCH, grid.kernel, why.c_str()));
    };
    if (running_block != nullptr) refuse("a kernel launches a kernel");
    if (grid.blocks < 1) refuse(format("%d blocks", grid.blocks));
    if (grid.threads < 32 || grid.threads > MAX_THREADS || grid.threads % 32 != 0)
        refuse(format("%d threads in a block", grid.threads));
    if (grid.shared_bytes < 0 || grid.shared_bytes > SharedMemory::MAX_BYTES)
        refuse(format("%d bytes of shared memory in a block", grid.shared_bytes));
    if (grid.blocks_per_multiprocessor * (grid.shared_bytes + RESERVED_SHARED_BYTES) > MULTIPROCESSOR_SHARED_BYTES)
        refuse(format("%d blocks of %d bytes of shared memory do not fit a multiprocessor",
                      grid.blocks_per_multiprocessor, grid.shared_bytes));
}

// Forgets the block also when it ends with an exception.
struct Running {
    explicit Running(Block& block) { running_block = &block; }
    ~Running() { running_block = nullptr; }
};

}  // namespace

Options& options() {
    static Options values;
    return values;
}

void run(const Grid& grid, Scheduler::Body body, const void* params) {
    check_grid(grid);
    Random random(options().seed);
    std::vector<int> order(grid.blocks);
    std::iota(order.begin(), order.end(), 0);
    for (int i = grid.blocks - 1; i > 0; --i) std::swap(order[i], order[random.below(i + 1)]);
    for (int index : order) {
        Block block(grid, index, options().checks, random);
        const Running running(block);
        block.scheduler.run(body, params);
    }
}

std::string format(const char* pattern, ...) {
    va_list arguments;
    va_start(arguments, pattern);
    char text[512];
    vsnprintf(text, sizeof(text), pattern, arguments);
    va_end(arguments);
    return text;
}

void report(const char* hazard, const std::string& detail) {
    std::string text = std::string(hazard) + ": " + detail;
    if (running_block != nullptr) {
        const Block& block = *running_block;
        const int thread = block.scheduler.running();
        text += format(" [kernel %s, block %d", block.grid.kernel, block.index);
        if (thread >= 0) text += format(", warp %d lane %d", thread / 32, thread % 32);
        text += format(", seed %llu]", static_cast<unsigned long long>(options().seed));
    }
    throw std::runtime_error(text);
}

}  // namespace emulator
