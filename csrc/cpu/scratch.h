// Memory for tiles: one piece for each thread, which grows and stays.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace ISA {

constexpr size_t ALIGNMENT = 64;

struct Kept {
    char* memory = nullptr;
    size_t bytes = 0;

    ~Kept() { std::free(memory); }
    char* at_least(size_t wanted) {
        if (wanted <= bytes) return memory;
        std::free(memory);
        bytes = 0;
        memory = static_cast<char*>(std::aligned_alloc(ALIGNMENT, wanted));
        if (memory == nullptr) throw std::bad_alloc();
        bytes = wanted;
        return memory;
    }
};
inline thread_local Kept kept;

class Scratch {
  public:
    explicit Scratch(size_t bytes) : next(kept.at_least(rounded(bytes))) {}

    template <class Number = float>
    Number* take(int64_t count) {
        auto* found = reinterpret_cast<Number*>(next);
        next += rounded(count * sizeof(Number));
        return found;
    }
    static constexpr size_t rounded(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

  private:
    char* next;
};

}  // namespace ISA
