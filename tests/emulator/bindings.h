// The small kernels as Python functions: tensors come as addresses. Who includes this makes the module.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <type_traits>

#include "gemm.h"
#include "primitives.h"

namespace primitives {

template <class T>
T* pointer(int64_t address) {
    return reinterpret_cast<T*>(address);
}

template <class T>
constexpr auto ELEMENT = std::is_same_v<T, ptx::fp16> ? ptx::Element::fp16 : ptx::Element::bf16;

// Sizes are (columns, rows, heads, batches), strides of the last three in bytes.
template <class T>
ptx::TensorMap tensor_map(int64_t data, std::array<int64_t, 4> sizes, std::array<int64_t, 3> strides, int box_rows) {
    ptx::bind_context();
    return ptx::make_tensor_map(ELEMENT<T>, pointer<void>(data), {sizes[0], sizes[1], sizes[2], sizes[3]},
                                {strides[0], strides[1], strides[2]}, box_rows);
}

template <class T>
ptx::TensorMap matrix(int64_t data, int64_t rows, int64_t columns, int box_rows) {
    return tensor_map<T>(data, {columns, rows, 1, 1}, {2 * columns, 2 * rows * columns, 2 * rows * columns}, box_rows);
}

template <class T, int N>
void multiply(int64_t a, int64_t b, int64_t d, int left, bool b_mn_major, int b_first) {
    ProductParams params = {matrix<T>(a, 64, 64, 64), {}, pointer<uint32_t>(a), pointer<float>(d), left, b_first};
    params.b = b_mn_major ? matrix<T>(b, 64, b_first + N, 64) : matrix<T>(b, N, 64, N);
    if (b_mn_major)
        ptx::launch<Multiply<T, N, ptx::MN_MAJOR>>(params, 1, nullptr);
    else
        ptx::launch<Multiply<T, N, ptx::K_MAJOR>>(params, 1, nullptr);
}

template <class T>
auto find_multiply(int n) {
    switch (n) {
        case 32: return multiply<T, 32>;
        case 64: return multiply<T, 64>;
        case 80: return multiply<T, 80>;
        case 96: return multiply<T, 96>;
        case 128: return multiply<T, 128>;
        case 160: return multiply<T, 160>;
        case 176: return multiply<T, 176>;
        case 192: return multiply<T, 192>;
        default: return multiply<T, 256>;
    }
}

inline void gemm(int64_t a, int64_t b, int64_t c, int m, int n, int k) {
    using ptx::bf16;
    const auto steps = [](int size, int tile) { return (size + tile - 1) / tile; };
    const tests::GemmParams params = {matrix<bf16>(a, m, k, 128),
                                      matrix<bf16>(b, n, k, 64),
                                      matrix<bf16>(c, m, n, 64),
                                      steps(m, 128),
                                      steps(n, 64),
                                      steps(k, 64)};
    ptx::launch<tests::Gemm>(params, ptx::multiprocessors(), nullptr);
}

template <class Function>
void define_numbers(pybind11::module_& module) {
    module.def(Function::name, [](int64_t x, int64_t y, int64_t result, int count) {
        ptx::launch<Numbers<Function>>({pointer<void>(x), pointer<void>(y), pointer<void>(result), count}, 2, nullptr);
    });
}

inline void define(pybind11::module_& module) {
    // Local: both kinds of module can be loaded at once.
    pybind11::class_<ptx::TensorMap>(module, "TensorMap", pybind11::module_local())
        .def(pybind11::init(&tensor_map<ptx::bf16>));
    module.def(
        "multiply", [](bool fp16, int n, int64_t a, int64_t b, int64_t d, int left, bool b_mn_major, int b_first) {
            (fp16 ? find_multiply<ptx::fp16>(n) : find_multiply<ptx::bf16>(n))(a, b, d, left, b_mn_major, b_first);
        });
    module.def("copy", [](const ptx::TensorMap& from, const ptx::TensorMap& to, int rows, int64_t image,
                          std::array<int, 4> from_place, std::array<int, 4> to_place) {
        CopyParams params = {from, to, pointer<float>(image), rows, {}, {}};
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
    module.def("lanes", [](int64_t shuffled, int64_t swapped, int64_t above, int64_t any, int64_t elected, int blocks) {
        ptx::launch<Lanes>({pointer<int>(shuffled), pointer<int>(swapped), pointer<int>(above), pointer<int>(any),
                            pointer<int>(elected)},
                           blocks, nullptr);
    });
    module.def("words", [](int64_t in, int64_t out, int64_t numbers) {
        ptx::launch<Words>({pointer<float>(in), pointer<float>(out), pointer<int>(numbers)}, 1, nullptr);
    });
    module.def("tickets", [](int64_t counter, int64_t tickets, int64_t sums, int blocks) {
        ptx::launch<Tickets>({pointer<int>(counter), pointer<int>(tickets), pointer<float>(sums)}, blocks, nullptr);
    });
    module.def("turns",
               [](int64_t numbers, int rounds) { ptx::launch<Turns>({pointer<int>(numbers), rounds}, 1, nullptr); });
    module.def("registers", [](int64_t in, int64_t out) {
        ptx::launch<Registers>({pointer<float>(in), pointer<float>(out)}, 1, nullptr);
    });
    module.def("set_zero",
               [](int64_t address, int64_t bytes) { ptx::set_zero(pointer<void>(address), bytes, nullptr); });
    module.def("gemm", &gemm);
    define_numbers<PackBf16>(module);
    define_numbers<PackFp16>(module);
    define_numbers<Bf16ToFloat>(module);
    define_numbers<Fp16ToFloat>(module);
    define_numbers<Exp2>(module);
    define_numbers<Log2>(module);
    define_numbers<Tanh>(module);
    define_numbers<MinOrNan>(module);
    define_numbers<MultiplyHigh>(module);
}

}  // namespace primitives
