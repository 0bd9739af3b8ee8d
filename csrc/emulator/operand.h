// Operands of products: descriptors of tiles in shared memory, decoded, and their numbers as floats.
#pragma once
#include <cstdint>
#include <vector>

#include "emulator/number.h"
#include "emulator/shared_memory.h"

namespace emulator {

enum class Type { BF16, FP16 };

constexpr int DEPTH = 16;  // of one product: the length of the dimension that is summed over
constexpr int CHUNK_BYTES = 16;

// A tile of `rows` (of M or N) x DEPTH numbers.
class Operand {
  public:
    // Reports descriptors that the matrix unit does not take, and tiles outside of shared memory.
    Operand(uint64_t descriptor, bool mn_major, int rows, const SharedMemory& shared);

    struct Chunk {
        uint32_t address;
        int row, depth;  // of its first number; K-major chunks run along the depth, others along the rows
    };

    // All 16-byte pieces of the tile.
    const std::vector<Chunk>& chunks() const { return chunks_; }

    // to[row * row_step + depth * depth_step] = the number there.
    void gather(const SharedMemory& shared, Type type, float* to, int row_step, int depth_step) const;

  private:
    bool mn_major_;
    std::vector<Chunk> chunks_;
};

}  // namespace emulator
