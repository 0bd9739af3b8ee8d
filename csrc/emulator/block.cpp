#include "emulator/block.h"

#include "emulator/report.h"

namespace emulator {

Block::Block(const Grid& grid, int index, bool checks, Random& random)
    : grid(grid),
      index(index),
      threads(grid.threads),
      checks(checks),
      random(random),
      scheduler(grid.threads, random),
      order(grid.threads),
      shared(grid.shared_bytes),
      shadow(SharedMemory::BASE, grid.shared_bytes + 16, order.components, order.async_fences()),
      barriers(*this),
      warps(*this, grid.threads / 32),
      named_barriers(*this),
      copies(*this, grid.threads),
      products(*this, grid.threads),
      registers(*this, grid.threads, grid.blocks_per_multiprocessor) {
    scheduler.on_thread_end = [this](int thread) {
        if (!this->checks) return;
        copies.end_thread(thread);
        products.end_thread(thread);
    };
    scheduler.on_block_end = [this] {
        if (this->checks) barriers.end_block();
    };
    scheduler.explain = [this](const Wait& wait) -> std::string {
        const std::string operation = wait.operation;
        if (operation == "barrier_wait") return format(" parity %d of ", wait.detail) + barriers.describe(wait.address);
        if (operation == "named_barrier_sync" && wait.address != Wait::NOWHERE)
            return " " + named_barriers.describe(static_cast<int>(wait.address));
        if (operation == "products_wait") return products.describe_wait(static_cast<int>(wait.address), wait.detail);
        if (operation == "take_registers") return format("<%d> (%d are free)", wait.detail, registers.free());
        return "";
    };
}

void Block::before_read(uint32_t address, int bytes, const char* operation) {
    scheduler.step(1);
    shared.check(address, bytes, bytes, operation);
    if (!checks) return;
    const int thread = scheduler.running();
    shadow.check_read(address, bytes, order.clock(thread), false);
    shadow.mark_read(address, bytes, order.now(thread), order.clock(thread));
}

void Block::before_write(uint32_t address, int bytes, const char* operation) {
    scheduler.step(1);
    shared.check(address, bytes, bytes, operation);
    if (!checks) return;
    const int thread = scheduler.running();
    shadow.write(address, bytes, order.clock(thread), order.now(thread), false);
}

}  // namespace emulator
