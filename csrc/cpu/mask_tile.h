// What attn_mask adds to a tile of scores, lane by lane: entries (key, lane), -inf where a query may not look.
#pragma once
#include "key_tile.h"

namespace ISA {

class MaskTile {
  public:
    static constexpr size_t SIZE = 2 * TILE_KEYS * TILE_ROWS * sizeof(float);

    MaskTile(Scratch& scratch, const Mask& mask) : mask(mask) {
        if (!mask.kind) return;
        entries = scratch.take(TILE_KEYS * TILE_ROWS), by_row = scratch.take(TILE_KEYS * TILE_ROWS);
    }
    explicit operator bool() const { return mask.kind != Mask::NONE; }

    // Fetches the keys [begin, end); false if no row may look at any of them.
    bool fetch(const RowTile& tile, int64_t begin, int64_t end) {
        if (mask.kind) fetch_entries(tile, begin, end);
        return (!mask.kind && !tile.gaps) || look(tile, begin, end);
    }
    // The same of a mask that hides nothing.
    void fetch_entries(const RowTile& tile, int64_t begin, int64_t end) {
        const int64_t row = mask.entries.strides[2], head = mask.entries.strides[1];
        shared = row == 0 && (head == 0 || tile.head[0] == tile.head[tile.count - 1]);
        const int count = static_cast<int>(end - begin);
        if (shared) {
            fetch_row(0, tile, begin, count);
            for (int j = 0; j < count; ++j) store(entries + j * LANES, splat(by_row[j]));
        } else {
            for (int i = 0; i < tile.count; ++i) fetch_row(i, tile, begin, count);
            std::memset(by_row + tile.count * TILE_KEYS, 0, (tile.width - tile.count) * TILE_KEYS * sizeof(float));
            transpose(entries, tile.width, by_row, TILE_KEYS, tile.width, round_up(count, LANES));
        }
        lanes = shared ? LANES : tile.width;
    }
    // What is added to the scores of a key in the lanes from `lane` on.
    INLINE Floats bias(int64_t key, int lane) const { return load(entries + key * lanes + (shared ? 0 : lane)); }
    // Whether any row looks at a key of the tile; null if all are seen.
    const bool* seen() const { return all_seen ? nullptr : seen_by_any; }

  private:
    const Mask& mask;
    float *entries = nullptr, *by_row = nullptr;  // (key, lane), and (lane, key) before
    bool seen_by_any[TILE_KEYS];
    bool shared, all_seen = true;
    int lanes;

    void fetch_row(int i, const RowTile& tile, int64_t begin, int count) {
        const Tensor& from = mask.entries;
        const int64_t step = from.strides[3];
        const int64_t place = tile.batch * from.strides[0] + tile.head[i] * from.strides[1] +
                              tile.row[i] * from.strides[2] + begin * step;
        float* to = by_row + i * TILE_KEYS;
        if (mask.kind == Mask::FLOAT)
            return widen(to, from.data + place * bytes(from.number), step, count, from.number);
        const char* allowed = from.data + place;
        if (step == 1)
            for (int j = 0; j < count; ++j) to[j] = allowed[j] ? 0.0f : -INFINITY;
        else
            for (int j = 0; j < count; ++j) to[j] = allowed[j * step] ? 0.0f : -INFINITY;
    }
    bool look(const RowTile& tile, int64_t begin, int64_t end) {
        bool some = false;
        all_seen = true;
        for (int64_t j = 0; j < end - begin; ++j) {
            Ints sees = {};
            const int32_t key = static_cast<int32_t>(begin + j);
            for (int i = 0; i < tile.width; i += LANES) {
                const Ints inside = tile.sees(key, i);
                sees |= mask.kind ? inside & (bias(j, i) != -INFINITY) : inside;
            }
            seen_by_any[j] = any(sees);
            some |= seen_by_any[j];
            all_seen &= seen_by_any[j];
        }
        return some;
    }
};

}  // namespace ISA
