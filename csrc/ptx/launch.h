// Runs a kernel: a struct with Params, `threads`, `shared_bytes`, `name`, and run(params) for one thread.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <climits>
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

inline int current_device() {
    int device;
    check(cudaGetDevice(&device), "cudaGetDevice");
    return device;
}

// A thread that has called nothing of CUDA yet has no context, which tensor maps and launches need.
inline void bind_context() { check(cudaSetDevice(current_device()), "cudaSetDevice"); }

// That persistent grids fill at most, for tests: fewer blocks take many tiles each.
inline std::atomic<int> most_multiprocessors = INT_MAX;

// Of the current device, to be filled.
inline int multiprocessors() {
    int count;
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, current_device()), "cudaDeviceGetAttribute");
    return std::min<int>(count, most_multiprocessors);
}

inline void set_zero(void* pointer, int64_t bytes, Stream stream) {
    check(cudaMemsetAsync(pointer, 0, bytes, stream), "cudaMemsetAsync");
}

template <class Kernel>
void launch(const typename Kernel::Params& params, int blocks, Stream stream) {
    static std::atomic<uint64_t> ready = 0;  // a bit per device
    const uint64_t device = 1ull << current_device() % 64;
    if (!(ready & device)) {
        check(cudaFuncSetAttribute(entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, Kernel::shared_bytes),
              Kernel::name);
        ready |= device;
    }
    entry<Kernel><<<blocks, Kernel::threads, Kernel::shared_bytes, stream>>>(params);
    check(cudaGetLastError(), Kernel::name);
}

}  // namespace ptx
