// The keys, or values, of one tile as a float32 matrix: where they lie if they are float32 one after another, else copied.
// Rows that lie apart, as those of a head among others, are on a page each: a copy is read faster.
#pragma once
#include "product.h"
#include "work.h"

namespace ISA {

class KeyTiles {
  public:
    static size_t size(int64_t columns, int slots = 1) {
        return slots * TILE_KEYS * round_up(columns, LANES) * sizeof(float);
    }
    // slots: how many tiles' copies are kept at a time.
    KeyTiles(Scratch& scratch, const Tensor& tensor, int64_t columns, int slots = 1)
        : tensor(tensor),
          columns(columns),
          padded(round_up(columns, LANES)),
          copies(scratch.take(slots * TILE_KEYS * padded)) {}

    // seen: for each key, whether any query looks at it; null if one looks at each. What nobody looks at becomes 0: it
    // may be anything, and is multiplied by a weight of 0.
    Strided fetch(const Sequence& sequence, int64_t kv_head, int64_t begin, int64_t end, const bool* seen,
                  int slot = 0) const {
        const char* from = tensor.at(sequence.stored, kv_head, sequence.first_key + begin);
        if (tensor.number == Number::float32 && !seen && tensor.strides[2] == columns && tensor.strides[3] == 1)
            return {reinterpret_cast<const float*>(from), tensor.strides[2], tensor.strides[3]};
        return copied(from, end - begin, seen, slot);
    }
    // The same as rows of whole vectors, padded with 0.
    Rows fetch_rows(const Sequence& sequence, int64_t kv_head, int64_t begin, int64_t end, const bool* seen) const {
        const char* from = tensor.at(sequence.stored, kv_head, sequence.first_key + begin);
        if (tensor.number == Number::float32 && !seen && tensor.strides[3] == 1 && padded == columns)
            return {reinterpret_cast<float*>(const_cast<char*>(from)), tensor.strides[2]};
        copied(from, end - begin, seen, 0);
        return {copies, padded};
    }

  private:
    const Tensor& tensor;
    int64_t columns;
    int padded;
    float* copies;

    Strided copied(const char* from, int64_t count, const bool* seen, int slot) const {
        float* copy = copies + slot * TILE_KEYS * padded;
        const int64_t step = tensor.strides[2] * bytes(tensor.number);
        const bool whole = tensor.number == Number::float32 && tensor.strides[3] == 1 && padded == columns;
        for (int64_t j = 0; j < count; ++j, from += step) {
            float* to = copy + j * padded;
            const int64_t filled = seen && !seen[j] ? 0 : columns;
            if (filled && whole) {
                for (int c = 0; c < padded; c += LANES) store(to + c, load(reinterpret_cast<const float*>(from) + c));
                continue;
            }
            if (filled) widen(to, from, tensor.strides[3], columns, tensor.number);
            std::memset(to + filled, 0, (padded - filled) * sizeof(float));
        }
        return {copy, padded, 1};
    }
};

}  // namespace ISA
