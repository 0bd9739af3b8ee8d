// A block's dynamic shared memory: its bytes, its bounds, and the 128-byte swizzle.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

namespace emulator {

// 16-byte chunks of a 128-byte row change places by the row's number within its atom of eight.
inline uint32_t swizzle(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

class SharedMemory {
  public:
    static constexpr uint32_t BASE = 1024;  // not 0, so that a forgotten base shows
    static constexpr int MAX_BYTES = 227 * 1024;

    explicit SharedMemory(int bytes) : bytes_(bytes), data_(bytes + 16, 0xff) {}

    // Reports when the range is not inside of the block's shared memory or not aligned.
    void check(uint32_t address, int bytes, int alignment, const char* operation) const;

    template <class T>
    T load(uint32_t address) const {
        T value;
        std::memcpy(&value, &data_[address - BASE], sizeof(T));
        return value;
    }

    template <class T>
    void store(uint32_t address, T value) {
        std::memcpy(&data_[address - BASE], &value, sizeof(T));
    }

    const unsigned char* at(uint32_t address) const { return &data_[address - BASE]; }
    unsigned char* at(uint32_t address) { return &data_[address - BASE]; }

  private:
    int bytes_;
    std::vector<unsigned char> data_;
};

}  // namespace emulator
