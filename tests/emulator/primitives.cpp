// The small kernels as a Python module: tensors come as addresses.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "gemm.h"
#include "primitives.h"

namespace primitives {
namespace {

template <class T>
T* pointer(int64_t address) {
    return reinterpret_cast<T*>(address);
}

// Sizes are (columns, rows, heads, batches), strides of the last three in bytes.
ptx::TensorMap tensor_map(int64_t data, std::array<int64_t, 4> sizes, std::array<int64_t, 3> strides, int box_rows) {
    return ptx::make_tensor_map(ptx::Element::bf16, pointer<void>(data), {sizes[0], sizes[1], sizes[2], sizes[3]},
                                {strides[0], strides[1], strides[2]}, box_rows);
}

ptx::TensorMap matrix(int64_t data, int64_t rows, int64_t columns, int box_rows) {
    return tensor_map(data, {columns, rows, 1, 1}, {2 * columns, 2 * rows * columns, 2 * rows * columns}, box_rows);
}

template <class T, int N>
void multiply(int64_t a, int64_t b, int64_t d, int left, bool b_mn_major) {
    ProductParams params = {matrix(a, 64, 64, 64), {}, pointer<uint32_t>(a), pointer<float>(d), left};
    params.b = b_mn_major ? matrix(b, 64, N, 64) : matrix(b, N, 64, N);
    if (b_mn_major)
        ptx::launch<Multiply<T, N, ptx::MN_MAJOR>>(params, 1, nullptr);
    else
        ptx::launch<Multiply<T, N, ptx::K_MAJOR>>(params, 1, nullptr);
}

template <class T>
auto find_multiply(int n) {
    switch (n) {
        case 32:
            return multiply<T, 32>;
        case 64:
            return multiply<T, 64>;
        case 80:
            return multiply<T, 80>;
        case 96:
            return multiply<T, 96>;
        case 128:
            return multiply<T, 128>;
        case 160:
            return multiply<T, 160>;
        case 176:
            return multiply<T, 176>;
        case 192:
            return multiply<T, 192>;
        default:
            return multiply<T, 256>;
    }
}

void gemm(int64_t a, int64_t b, int64_t c, int m, int n, int k) {
    const auto steps = [](int size, int tile) { return (size + tile - 1) / tile; };
    const tests::GemmParams params = {matrix(a, m, k, 128), matrix(b, n, k, 64), matrix(c, m, n, 64),
                                      steps(m, 128),        steps(n, 64),        steps(k, 64)};
    ptx::launch<tests::Gemm>(params, ptx::multiprocessors(), nullptr);
}

PYBIND11_MODULE(emulator_primitives, module) {
    module.def("set_options", [](uint64_t seed, bool checks, int multiprocessors) {
        emulator::options() = {seed, checks, multiprocessors};
    });
    module.def("register_global", [](int64_t address, size_t bytes, bool initialised) {
        emulator::register_global(pointer<void>(address), bytes, initialised);
    });
    module.def("forget_globals", &emulator::forget_globals);
    pybind11::class_<ptx::TensorMap>(module, "TensorMap").def(pybind11::init(&tensor_map));
    module.def("multiply", [](bool fp16, int n, int64_t a, int64_t b, int64_t d, int left, bool b_mn_major) {
        (fp16 ? find_multiply<ptx::fp16>(n) : find_multiply<ptx::bf16>(n))(a, b, d, left, b_mn_major);
    });
    module.def("copy", [](const ptx::TensorMap& from, const ptx::TensorMap& to, int64_t image,
                          std::array<int, 4> from_place, std::array<int, 4> to_place) {
        CopyParams params = {from, to, pointer<float>(image), {}, {}};
        std::copy(from_place.begin(), from_place.end(), params.from_place);
        std::copy(to_place.begin(), to_place.end(), params.to_place);
        ptx::launch<Copy>(params, 1, nullptr);
    });
    module.def("add", [](int64_t sums, int count, int rounds, int blocks) {
        ptx::launch<Add>({pointer<float>(sums), count, rounds}, blocks, nullptr);
    });
    module.def("matrices", [](int64_t fragments, int64_t plain, int64_t transposed) {
        ptx::launch<Matrices>({pointer<uint32_t>(fragments), pointer<float>(plain), pointer<float>(transposed)}, 1,
                              nullptr);
    });
    module.def("ring", [](int64_t rows, int64_t sums, int count) {
        ptx::launch<Ring>({pointer<float>(rows), pointer<float>(sums), count}, 1, nullptr);
    });
    module.def("lanes", [](int64_t shuffled, int64_t swapped, int64_t any, int64_t elected, int blocks) {
        ptx::launch<Lanes>({pointer<int>(shuffled), pointer<int>(swapped), pointer<int>(any), pointer<int>(elected)},
                           blocks, nullptr);
    });
    module.def("gemm", &gemm);
    module.def("pack", [](bool fp16, float low, float high) {
        return fp16 ? ptx::pack<ptx::fp16>(low, high) : ptx::pack<ptx::bf16>(low, high);
    });
    module.def("to_float", [](bool fp16, uint16_t bits) {
        return fp16 ? ptx::to_float(ptx::fp16{bits}) : ptx::to_float(ptx::bf16{bits});
    });
    module.def("exp2", &ptx::exp2_approximate);
    module.def("log2", &ptx::log2_approximate);
    module.def("multiply_high", &ptx::multiply_high);
}

}  // namespace
}  // namespace primitives
