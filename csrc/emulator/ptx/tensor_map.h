// Descriptors of 4-d tensors for the copy engine, with the driver's checks.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

#include "emulator/options.h"
#include "emulator/tensor.h"

namespace ptx {

using TensorMap = emulator::Tensor;

enum class Element { bf16, fp16 };

inline TensorMap make_tensor_map(Element, const void* data, const int64_t (&sizes)[4], const int64_t (&strides)[3],
                                 int box_rows) {
    const auto refuse = [](const std::string& why) { throw std::runtime_error("tensor map refused: " + why); };
    if (!emulator::context_is_bound) refuse("this thread has no context (CUresult 201)");
    if (reinterpret_cast<uintptr_t>(data) % 16 != 0) refuse("the data are not aligned to 16 bytes");
    for (int64_t size : sizes)
        if (size < 1 || size > int64_t(1) << 32) refuse("a size of " + std::to_string(size));
    for (int64_t stride : strides)
        if (stride < 0 || stride >= int64_t(1) << 40 || stride % 16 != 0)
            refuse("a stride of " + std::to_string(stride) + " bytes");
    if (box_rows < 1 || box_rows > 256) refuse("boxes of " + std::to_string(box_rows) + " rows");
    return {static_cast<const char*>(data),
            {sizes[0], sizes[1], sizes[2], sizes[3]},
            {strides[0], strides[1], strides[2]},
            box_rows};
}

}  // namespace ptx
