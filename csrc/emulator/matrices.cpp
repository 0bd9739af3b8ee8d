#include "emulator/matrices.h"

#include "emulator/block.h"

namespace emulator {

void store_matrices(Block& block, uint32_t row, const std::array<uint32_t, 4>& fragments, bool transposed) {
    constexpr int ROW_BYTES = 16;
    const int lane = block.scheduler.running() % 32;
    // The whole warp must be there before any row is complete, so the fragments are exchanged first.
    Collective& warp = block.warps.arrive(transposed ? "store_matrices_transposed" : "store_matrices");
    warp.fragments[lane] = fragments;
    block.before_write(row, ROW_BYTES, "store_matrices");
    block.warps.wait(warp);
    for (int column = 0; column < 8; ++column) {
        const int matrix = lane / 8, across = transposed ? column : lane % 8, along = transposed ? lane % 8 : column;
        const uint32_t pair = warp.fragments[across * 4 + along / 2][matrix];
        block.shared.store(row + column * 2, static_cast<uint16_t>(pair >> along % 2 * 16));
    }
    block.warps.leave(warp);
}

}  // namespace emulator
