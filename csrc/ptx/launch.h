// Runs a kernel: a struct with Params, `threads`, `shared_bytes`, `name`, and run(params) for one thread.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace ptx {

using Stream = cudaStream_t;

template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads, Kernel::blocks_per_multiprocessor)
    entry(const __grid_constant__ typename Kernel::Params params) {
    Kernel::run(params);
}

inline void check(cudaError_t error, const char* kernel) {
    if (error != cudaSuccess)
        throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorName(error) + ", " +
                                 cudaGetErrorString(error));
}

// Multiprocessors of the current device.
inline int multiprocessors() {
    int device, count;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    return count;
}

inline void set_zero(void* pointer, int64_t bytes, Stream stream) {
    check(cudaMemsetAsync(pointer, 0, bytes, stream), "cudaMemsetAsync");
}

template <class Kernel>
void launch(const typename Kernel::Params& params, int blocks, Stream stream) {
    static const bool ready = [] {
        check(cudaFuncSetAttribute(entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, Kernel::shared_bytes),
              Kernel::name);
        return true;
    }();
    static_cast<void>(ready);
    entry<Kernel><<<blocks, Kernel::threads, Kernel::shared_bytes, stream>>>(params);
    check(cudaGetLastError(), Kernel::name);
}

}  // namespace ptx
