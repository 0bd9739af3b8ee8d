// Which tile a block of a persistent grid works on next: whatever comes first among those nobody has taken. Heads
// come in sections whose keys and values stay in the cache together; inside a section the tiles with most work come
// first, so that short ones fill the gaps at the end.
#pragma once
#include <ptx/memory.h>

namespace core {

struct Place {
    int tile, head;
};

// Filled on the host.
struct Tiling {
    int tiles;       // of one head
    int heads;       // over all batches
    int section;     // heads in a section, of all heads at most: its tiles are an int
    int last_first;  // whether work grows with the tile's number
    int* counter;    // zero at the start; not needed where every tile has a block of its own

    DEVICE int total() const { return tiles * heads; }

    // The tile that comes `number`-th.
    DEVICE Place operator[](int number) const {
        const int first_head = number / (section * tiles) * section, left = heads - first_head;
        const int together = left < section ? left : section;
        const int within = number - first_head * tiles, rank = within / together;
        return {last_first ? tiles - 1 - rank : rank, first_head + within % together};
    }

    // One thread of a block: the number to go on with; total() or more when there is none.
    DEVICE int next() const {
        const int blocks = ptx::grid_size();
        return blocks < total() ? blocks + ptx::fetch_add(counter, 1) : total();
    }
};

}  // namespace core
