// The running block: its threads, its memory, and the units that work for it.
#pragma once
#include <cstdint>
#include <string>

#include "emulator/barriers.h"
#include "emulator/copies.h"
#include "emulator/mark.h"
#include "emulator/named_barriers.h"
#include "emulator/order.h"
#include "emulator/products.h"
#include "emulator/random.h"
#include "emulator/registers.h"
#include "emulator/scheduler.h"
#include "emulator/shadow.h"
#include "emulator/shared_memory.h"
#include "emulator/warps.h"

namespace emulator {

// What a launch asks for.
struct Grid {
    const char* kernel;
    int threads, shared_bytes, blocks_per_multiprocessor, blocks;
};

struct Block {
    Block(const Grid& grid, int index, bool checks, Random& random);

    const Grid& grid;
    const int index;
    const int threads;
    const bool checks;
    Random& random;
    Scheduler scheduler;
    Order order;
    SharedMemory shared;
    Shadow shadow;
    Barriers barriers;
    Warps warps;
    NamedBarriers named_barriers;
    Copies copies;
    Products products;
    RegisterPool registers;

    // Ordinary accesses to shared memory by the running thread.
    template <class T>
    T load(uint32_t address, const char* operation) {
        before_read(address, sizeof(T), operation);
        return shared.load<T>(address);
    }
    template <class T>
    void store(uint32_t address, T value, const char* operation) {
        check_landed(value, operation);
        before_write(address, sizeof(T), operation);
        shared.store(address, value);
    }

    // Their checks alone.
    void before_read(uint32_t address, int bytes, const char* operation);
    void before_write(uint32_t address, int bytes, const char* operation);
};

// The block that runs; null between launches.
extern Block* running_block;

// Runs body(params) in every thread of every block, block after block.
void run(const Grid& grid, Scheduler::Body body, const void* params);

}  // namespace emulator
