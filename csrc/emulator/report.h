// The hazards by name, and the exception that reports one.
#pragma once
#include <string>

namespace emulator {

namespace hazard {

constexpr const char* DEADLOCK = "deadlock";
constexpr const char* DIVERGENT_WARP = "divergent warp";
constexpr const char* DIVERGENT_PRODUCT = "divergent product";
constexpr const char* EARLY_READ = "read before the copy was waited for";
constexpr const char* OVERWRITE = "overwrite of an operand still being read";
constexpr const char* PROXY_FENCE = "missing async-proxy fence";
constexpr const char* OUT_OF_BOUNDS = "out of bounds";
constexpr const char* MISALIGNED = "misaligned";
constexpr const char* UNINITIALISED = "uninitialised read";
constexpr const char* RACE = "race";
constexpr const char* BARRIER_TWICE = "barrier initialised twice";
constexpr const char* BARRIER_UNINITIALISED = "barrier not initialised";
constexpr const char* BARRIER_FENCE = "missing barrier-init fence";
constexpr const char* BARRIER_BYTES = "access to a barrier's bytes";
constexpr const char* ARRIVALS = "too many arrivals";
constexpr const char* TX_COUNT = "tx-count overflow";
constexpr const char* LATE_COPY = "copy outlives its phase";
constexpr const char* NAMED_BARRIER = "named barrier misused";
constexpr const char* PRODUCTS_FENCE = "missing products fence";
constexpr const char* DESCRIPTOR = "bad operand descriptor";
constexpr const char* OPERAND_MODIFIED = "register operand modified while a product reads it";
constexpr const char* ACCUMULATOR_MODIFIED = "accumulator modified while a product writes it";
constexpr const char* EARLY_ACCUMULATOR = "accumulator read before its product was waited for";
constexpr const char* UNFINISHED = "exit before asynchronous work was waited for";
constexpr const char* REGISTERS = "register pool";
constexpr const char* LAUNCH = "launch refused";

}  // namespace hazard

// printf into a string.
std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

// Throws std::runtime_error: the hazard, the detail, and the kernel, block, running thread and seed.
[[noreturn]] void report(const char* hazard, const std::string& detail);

}  // namespace emulator
