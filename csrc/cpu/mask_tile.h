// What attn_mask adds to a tile of scores, lane by lane: entries (key, lane), -inf where a query may not look.
#pragma once
#include "key_tile.h"

namespace ISA {

class MaskTile {
  public:
    static constexpr size_t SIZE = TILE_KEYS * TILE_ROWS * sizeof(float);

    MaskTile(Scratch& scratch, const Mask& mask) : mask(mask) {
        if (mask.kind) entries = scratch.take(TILE_KEYS * TILE_ROWS);
    }
    explicit operator bool() const { return mask.kind != Mask::NONE; }

    // Fetches the keys [begin, end); false if no row may look at any of them.
    bool fetch(const RowTile& tile, int64_t begin, int64_t end) {
        if (!mask.kind) return !tile.gaps || look(tile, begin, end);
        const int64_t row = mask.entries.strides[2], head = mask.entries.strides[1];
        shared = row == 0 && (head == 0 || tile.head[0] == tile.head[tile.count - 1]);
        lanes = shared ? LANES : tile.width;
        const int count = shared ? 1 : tile.count;
        for (int i = 0; i < lanes; ++i)
            if (i < count)
                column(i, tile, begin, end);
            else
                for (int64_t j = 0; j < end - begin; ++j) entries[j * lanes + i] = shared ? entries[j * lanes] : 0.0f;
        return look(tile, begin, end);
    }
    // What is added to the scores of a key in the lanes from `lane` on.
    INLINE Floats bias(int64_t key, int lane) const { return load(entries + key * lanes + (shared ? 0 : lane)); }
    // Whether any row looks at a key of the tile; null if all are seen.
    const bool* seen() const { return all_seen ? nullptr : seen_by_any; }

  private:
    const Mask& mask;
    float* entries = nullptr;
    bool seen_by_any[TILE_KEYS];
    bool shared, all_seen = true;
    int lanes;

    void column(int i, const RowTile& tile, int64_t begin, int64_t end) {
        const Tensor& from = mask.entries;
        const int64_t step = from.strides[3];
        const int64_t place = tile.batch * from.strides[0] + tile.head[i] * from.strides[1] +
                              tile.row[i] * from.strides[2] + begin * step;
        if (mask.kind == Mask::BOOL) {
            const char* allowed = from.data + place;
            for (int64_t j = 0; j < end - begin; ++j)
                entries[j * lanes + i] = allowed[j * step] ? 0.0f : -INFINITY;
        } else {
            with_number(from.number, [&](auto kind) {
                const auto* numbers = reinterpret_cast<const typename decltype(kind)::Stored*>(from.data) + place;
                for (int64_t j = 0; j < end - begin; ++j) entries[j * lanes + i] = kind.widened(numbers[j * step]);
            });
        }
    }
    bool look(const RowTile& tile, int64_t begin, int64_t end) {
        bool some = false;
        all_seen = true;
        for (int64_t j = 0; j < end - begin; ++j) {
            Ints sees = {};
            const int32_t key = static_cast<int32_t>(begin + j);
            for (int i = 0; i < tile.width; i += LANES) {
                const Ints inside = (load(tile.begin + i) <= key) & (load(tile.end + i) > key);
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
