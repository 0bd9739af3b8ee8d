#include "emulator/shared_memory.h"

#include "emulator/report.h"

namespace emulator {

void SharedMemory::check(uint32_t address, int bytes, int alignment, const char* operation) const {
    if (address < BASE || bytes < 0 || address - BASE + static_cast<uint64_t>(bytes) > static_cast<uint64_t>(bytes_))
        report(hazard::OUT_OF_BOUNDS, format("%s of %d bytes at shared address 0x%x; the block has 0x%x to 0x%x",
                                             operation, bytes, address, BASE, BASE + bytes_));
    if (address % alignment != 0)
        report(hazard::MISALIGNED,
               format("%s at shared address 0x%x, which is no multiple of %d", operation, address, alignment));
}

}  // namespace emulator
