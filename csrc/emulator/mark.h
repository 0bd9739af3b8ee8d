// What accumulators hold while a product is to write them, and how its use shows.
#pragma once
#include <cstdint>
#include <cstring>

namespace emulator {

// A signalling NaN: arithmetic on it gives the quiet one of the same payload, so that both reading and writing show.
constexpr uint32_t MARK = 0x7fadcba9, QUIET_MARK = MARK | 1u << 22;

[[noreturn]] void report_mark(const char* operation);
bool marks_are_reported();

// Reports when a value that the thread gives away comes from an accumulator that it has not waited for.
template <class T>
inline void check_landed(const T& value, const char* operation) {
    uint32_t words[(sizeof(T) + 3) / 4] = {};
    std::memcpy(words, &value, sizeof(T));
    for (uint32_t word : words)
        if ((word | 1u << 22) == QUIET_MARK && marks_are_reported()) report_mark(operation);
}

}  // namespace emulator
