// The keys, or values, of one tile as a float32 matrix: where they lie if they are float32, else copied.
#pragma once
#include "product.h"
#include "work.h"

namespace ISA {

class KeyTiles {
  public:
    static size_t size(int64_t columns, int slots = 1) {
        return slots * Scratch::rounded(TILE_KEYS * columns * sizeof(float));
    }
    // slots: how many tiles' copies are kept at a time.
    KeyTiles(Scratch& scratch, const Tensor& tensor, int64_t columns, int slots = 1)
        : tensor(tensor), columns(columns), copies(scratch.take(slots * TILE_KEYS * columns)) {}

    // seen: for each key, whether any query looks at it; null if one looks at each. What nobody looks at becomes 0: it
    // may be anything, and is multiplied by a weight of 0.
    Strided fetch(const Sequence& sequence, int64_t kv_head, int64_t begin, int64_t end, const bool* seen,
                  int slot = 0) const {
        const char* from = tensor.at(sequence.stored, kv_head, sequence.first_key + begin);
        if (tensor.number == Number::float32 && !seen)
            return {reinterpret_cast<const float*>(from), tensor.strides[2], tensor.strides[3]};
        float* copy = copies + slot * TILE_KEYS * columns;
        for (int64_t j = 0; j < end - begin; ++j, from += tensor.strides[2] * bytes(tensor.number)) {
            if (seen && !seen[j])
                std::memset(copy + j * columns, 0, columns * sizeof(float));
            else
                widen(copy + j * columns, from, tensor.strides[3], columns, tensor.number);
        }
        return {copy, columns, 1};
    }

  private:
    const Tensor& tensor;
    int64_t columns;
    float* copies;
};

}  // namespace ISA
