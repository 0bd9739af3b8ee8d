// The ranges of global memory that kernels may touch.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

// Reports when ranges are registered and none holds these bytes, or when they are not aligned.
void check_global(const void* pointer, size_t bytes, size_t alignment, const char* operation);

// As above; a read also wants the bytes initialised, and a write makes them so.
void check_global_read(const void* pointer, size_t bytes, size_t alignment, const char* operation);
void check_global_write(const void* pointer, size_t bytes, size_t alignment, const char* operation);

}  // namespace emulator
