// What happened to every four bytes of shared memory: the last write and the reads since, as epochs. An access
// is checked against what the accessing thread knows to have happened.
#pragma once
#include <cstdint>
#include <vector>

#include "emulator/clock.h"
#include "emulator/components.h"

namespace emulator {

// The count at which each thread last fenced, by thread: its fences in order.
using Fences = std::vector<std::vector<uint32_t>>;

// True when the writer fenced after the moment and before what the clock knows of it.
bool fenced_between(const std::vector<uint32_t>& fences, Epoch moment, const VectorClock& clock);

class Shadow {
  public:
    static constexpr int GRANULE = 4;

    Shadow(uint32_t base, int bytes, const Components& components, const Fences& async_fences)
        : base_(base), granules_(bytes / GRANULE), overflow_(1), components_(components), fences_(async_fences) {}

    // Reports unless the bytes were written before, by a moment that the clock covers. An asynchronous unit
    // also needs the writer's fence.
    void check_read(uint32_t address, int bytes, const VectorClock& clock, bool asynchronous) const;

    void mark_read(uint32_t address, int bytes, Epoch reader, const VectorClock& clock);

    // Reports unless the clock covers the last write and every read since, then remembers the writer. The copy
    // engine also needs the fence of the thread that wrote last.
    void write(uint32_t address, int bytes, const VectorClock& clock, Epoch writer, bool asynchronous);

    // From now on ordinary accesses to these bytes are reported.
    void claim_barrier(uint32_t address, int bytes);

  private:
    struct Granule {
        Epoch write = 0;
        Epoch reads[3] = {0, 0, 0};
        uint32_t more = 0;  // index into overflow_ of further readers
    };

    static constexpr Epoch BARRIER = ~0u;  // no clock ever covers it

    Granule* at(uint32_t address) { return &granules_[(address - base_) / GRANULE]; }
    const Granule* at(uint32_t address) const { return &granules_[(address - base_) / GRANULE]; }
    void check_fence(uint32_t address, Epoch write, const VectorClock& clock) const;
    void add_overflow(Granule& granule, Epoch reader, const VectorClock& clock);
    [[noreturn]] void report_read(uint32_t address, Epoch write) const;
    [[noreturn]] void report_write(uint32_t address, Epoch other, bool other_reads) const;

    uint32_t base_;
    std::vector<Granule> granules_;
    std::vector<std::vector<Epoch>> overflow_;
    std::vector<uint32_t> free_;  // of overflow_
    const Components& components_;
    const Fences& fences_;
};

}  // namespace emulator
