#include "emulator/global_memory.h"

#include <algorithm>
#include <map>
#include <vector>

#include "emulator/options.h"
#include "emulator/report.h"

namespace emulator {

namespace {

struct Range {
    size_t bytes;
    std::vector<bool> written;  // by byte; empty when all are initialised
};

std::map<uintptr_t, Range> ranges;  // by their first byte

// The range that holds these bytes, or nothing when no range is registered at all.
std::map<uintptr_t, Range>::iterator find(const void* pointer, size_t bytes, size_t alignment, const char* operation) {
    const auto first = reinterpret_cast<uintptr_t>(pointer);
    if (first % alignment != 0)
        report(hazard::MISALIGNED,
               format("%s at global address %p, which is no multiple of %zu", operation, pointer, alignment));
    if (ranges.empty()) return ranges.end();
    auto range = ranges.upper_bound(first);
    if (range != ranges.begin()) {
        --range;
        const size_t offset = first - range->first;
        if (offset <= range->second.bytes && bytes <= range->second.bytes - offset) return range;
    }
    report(hazard::OUT_OF_BOUNDS, format("%s of %zu bytes at global address %p, outside of every registered range",
                                         operation, bytes, pointer));
}

}  // namespace

void register_global(const void* pointer, size_t bytes, bool initialised) {
    ranges[reinterpret_cast<uintptr_t>(pointer)] = {bytes, std::vector<bool>(initialised ? 0 : bytes)};
}

void forget_globals() { ranges.clear(); }

void check_global(const void* pointer, size_t bytes, size_t alignment, const char* operation) {
    find(pointer, bytes, alignment, operation);
}

void check_global_read(const void* pointer, size_t bytes, size_t alignment, const char* operation) {
    const auto range = find(pointer, bytes, alignment, operation);
    if (range == ranges.end() || range->second.written.empty()) return;
    const auto first = range->second.written.begin() + (reinterpret_cast<uintptr_t>(pointer) - range->first);
    if (std::find(first, first + bytes, false) != first + bytes)
        report(hazard::UNINITIALISED, format("%s of %zu bytes at global address %p", operation, bytes, pointer));
}

void check_global_write(const void* pointer, size_t bytes, size_t alignment, const char* operation) {
    const auto range = find(pointer, bytes, alignment, operation);
    if (range == ranges.end() || range->second.written.empty()) return;
    const auto first = range->second.written.begin() + (reinterpret_cast<uintptr_t>(pointer) - range->first);
    std::fill(first, first + bytes, true);
}

}  // namespace emulator
