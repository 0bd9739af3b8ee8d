#include "emulator/operand.h"

#include "emulator/report.h"

namespace emulator {

namespace {

constexpr int ATOM_BYTES = 1024;
constexpr int CHUNK_NUMBERS = 8;

uint32_t field(uint64_t descriptor, int first, int bits) {
    return static_cast<uint32_t>(descriptor >> first & ((1ull << bits) - 1));
}

}  // namespace

Operand::Operand(uint64_t descriptor, bool mn_major, int rows, const SharedMemory& shared) : mn_major_(mn_major) {
    const uint32_t start = field(descriptor, 0, 14) << 4;
    const uint32_t leading = field(descriptor, 16, 14) << 4;
    const uint32_t stride = field(descriptor, 32, 14) << 4;
    const auto refuse = [descriptor](const char* why) {
        report(hazard::DESCRIPTOR, format("0x%016llx: %s", static_cast<unsigned long long>(descriptor), why));
    };
    if (field(descriptor, 62, 2) != 1) refuse("the swizzle is not the 128-byte one");
    if (field(descriptor, 49, 3) != 0) refuse("the base offset is not 0");
    if (start % ATOM_BYTES >= 128) refuse("it starts inside of an atom, below the first of its eight rows");
    if (mn_major && start % 128 != 0 && start % 128 + rows * 2 > 128)
        refuse("an MN-major operand starts inside of an atom's row and goes on past its end");
    if (!mn_major && start % 128 % (DEPTH * 2) != 0) refuse("a K-major operand starts between steps of 16 numbers");
    if (stride % ATOM_BYTES != 0) refuse("the stride is no multiple of an atom of 1024 bytes");
    if (mn_major && rows > 64 && leading % ATOM_BYTES != 0)
        refuse("the leading offset is no multiple of an atom of 1024 bytes");
    if (mn_major) {
        for (int depth = 0; depth < DEPTH; ++depth)
            for (int row = 0; row < rows; row += CHUNK_NUMBERS)
                chunks_.push_back(
                    {swizzle(start + row / 64 * leading + depth / 8 * stride + depth % 8 * 128 + row % 64 * 2), row,
                     depth});
    } else {
        for (int row = 0; row < rows; ++row)
            for (int depth = 0; depth < DEPTH; depth += CHUNK_NUMBERS)
                chunks_.push_back({swizzle(start + row / 8 * stride + row % 8 * 128 + depth * 2), row, depth});
    }
    for (const Chunk& chunk : chunks_) shared.check(chunk.address, CHUNK_BYTES, CHUNK_BYTES, "a product's operand");
}

void Operand::gather(const SharedMemory& shared, Type type, float* to, int row_step, int depth_step) const {
    const int step = mn_major_ ? row_step : depth_step;
    const float* table = fp16_table().data();
    for (const Chunk& chunk : chunks_) {
        uint16_t numbers[CHUNK_NUMBERS];
        std::memcpy(numbers, shared.at(chunk.address), sizeof(numbers));
        float* first = to + chunk.row * row_step + chunk.depth * depth_step;
        if (type == Type::BF16)
            for (int i = 0; i < CHUNK_NUMBERS; ++i) first[i * step] = bf16_to_float(numbers[i]);
        else
            for (int i = 0; i < CHUNK_NUMBERS; ++i) first[i * step] = table[numbers[i]];
    }
}

}  // namespace emulator
