// Which tile a block of a persistent grid works on next. Heads come in sections whose keys and values stay in
// the cache together; inside a section the tiles with most work come first. Rounds run forwards and backwards in
// turn, so that every block gets its share of long ones.
#pragma once
#include "ptx/target.h"

namespace core {

// Filled on the host.
struct Tiling {
    int tiles;          // of one head
    int heads;          // over all batches
    int section;        // heads in a section
    int last_first;     // whether work grows with the tile's number

    static Tiling make(int tiles, int heads, int section, bool last_first) {
        return {tiles, heads, section < 1 ? 1 : section > heads ? heads : section, last_first};
    }
    int total() const { return tiles * heads; }
};

struct Schedule {
    const Tiling& tiling;
    int round = 0, tile, head;

    DEVICE explicit Schedule(const Tiling& tiling) : tiling(tiling) {}

    // Moves to the block's next tile; false when there is none.
    DEVICE bool next() {
        const int blocks = ptx::grid_size(), block = ptx::block_index();
        const int index = round * blocks + (round % 2 ? blocks - 1 - block : block);
        ++round;
        if (index >= tiling.tiles * tiling.heads) return false;
        const int section = index / (tiling.section * tiling.tiles);
        const int first_head = section * tiling.section;
        const int left = tiling.heads - first_head, heads = left < tiling.section ? left : tiling.section;
        const int within = index - first_head * tiling.tiles;
        const int rank = within / heads;
        head = first_head + within % heads;
        tile = tiling.last_first ? tiling.tiles - 1 - rank : rank;
        return true;
    }
};

}  // namespace core
