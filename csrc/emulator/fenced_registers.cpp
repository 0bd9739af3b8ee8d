#include "emulator/fenced_registers.h"

#include <cstring>

#include "emulator/report.h"

namespace emulator {

void FencedRegisters::check(const void* registers, size_t bytes) {
    for (const Seen& seen : seen_) {
        if (seen.registers != registers || seen.bytes != bytes) continue;
        if (!seen.at_fence.empty() && std::memcmp(registers, seen.at_fence.data(), bytes) != 0)
            report(hazard::PRODUCTS_FENCE, "registers were written after the fence");
        return;
    }
    seen_.push_back({registers, bytes, {}});
    if (seen_.size() > MOST) seen_.pop_front();
}

}  // namespace emulator
