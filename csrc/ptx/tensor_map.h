// Descriptors of 4-d tensors for the copy engine, made on the host.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace ptx {

using TensorMap = CUtensorMap;

// Element types of a tensor map.
enum class Element { bf16, fp16 };

// A tensor of sizes (columns, rows, heads, batches), columns side by side, other strides in bytes
// (multiples of 16), cut into boxes of 64 columns x box_rows rows with the 128-byte swizzle. Outside of
// the tensor, loads give zeros and stores do nothing.
inline TensorMap make_tensor_map(Element element, const void* data, const int64_t (&sizes)[4],
                                 const int64_t (&strides)[3], int box_rows) {
    static const auto encode = [] {
        void* function = nullptr;
        cudaDriverEntryPointQueryResult found;
        cudaError_t error =
            cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
        if (error != cudaSuccess || found != cudaDriverEntryPointSuccess)
            throw std::runtime_error("the CUDA driver has no cuTensorMapEncodeTiled: update the driver");
        return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
    }();
    cuuint64_t extents[4], pitches[3];
    for (int i = 0; i < 4; ++i) extents[i] = sizes[i];
    for (int i = 0; i < 3; ++i) pitches[i] = strides[i];
    const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(box_rows), 1, 1}, steps[4] = {1, 1, 1, 1};
    auto type = element == Element::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    TensorMap map;
    CUresult result =
        encode(&map, type, 4, const_cast<void*>(data), extents, pitches, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
               CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        throw std::runtime_error("cuTensorMapEncodeTiled failed with CUresult " + std::to_string(result));
    return map;
}

}  // namespace ptx
