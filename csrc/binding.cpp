// The Python module: checks, fills the call, launches. Addresses, sizes and strides are integers; no torch here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "calls.h"
#include <ptx/binding.h>
#include <ptx/launch.h>
#include <ptx/number.h>

namespace py = pybind11;

namespace {

using Sizes = std::array<int64_t, 4>;
using Described = std::tuple<int64_t, Sizes, Sizes>;  // address, sizes, strides in elements

void require(bool condition, const std::string& otherwise) {
    if (!condition) throw std::invalid_argument(otherwise);
}

// A 4-d tensor of 16-bit numbers as the copy engine can take it.
Tensor tensor(const char* name, const Described& described, const Sizes& sizes) {
    const auto& [address, own, strides] = described;
    require(own == sizes, std::string(name) + ": sizes do not match the other tensors'");
    require(address % 16 == 0, std::string(name) + ": address is not a multiple of 16 bytes");
    require(strides[3] == 1, std::string(name) + ": the last dimension's stride is not 1");
    for (int i = 0; i < 3; ++i) {
        require(sizes[i] > 0 && sizes[i] < 1 << 28, std::string(name) + ": sizes must lie between 1 and 2**28");
        require(strides[i] > 0 && strides[i] % 8 == 0 && strides[i] < 1ll << 38,
                std::string(name) + ": strides must be positive multiples of 16 bytes, below 2**39 bytes");
    }
    return {address, own, strides};
}

// Any 4-d tensor; strides 0 where broadcast. Address 0 stands for none.
Tensor plain_tensor(const Described& described) {
    return {std::get<0>(described), std::get<1>(described), std::get<2>(described)};
}

// The kernel of the narrowest width that holds the heads: the copy engine pads them with zeros.
template <class Function>
void dispatch(const std::string& dtype, int64_t head, Function function) {
    ptx::bind_context();
    const auto by_width = [&](auto type) {
        require(head > 0 && head % 8 == 0 && head <= 256, "no kernel for head size " + std::to_string(head));
        if (head <= 64) return function(type, std::integral_constant<int, 64>());
        if (head <= 128) return function(type, std::integral_constant<int, 128>());
        return function(type, std::integral_constant<int, 256>());
    };
    if (dtype == "bfloat16") return by_width(ptx::bf16());
    if (dtype == "float16") return by_width(ptx::fp16());
    throw std::invalid_argument("no kernel for dtype " + dtype);
}

// The sizes that a key must have beside a query.
Sizes key_sizes(const Sizes& query, const Sizes& key) {
    require(key[1] > 0 && query[1] % key[1] == 0, "query's heads are not a multiple of key's");
    return {query[0], key[1], key[2], query[3]};
}

void check_centers(const CenterOptions& centers, const Sizes& query, const Sizes& key) {
    require(!centers.present || query[1] == key[1], "around learned centres every head needs keys of its own");
}

int64_t wider(const Sizes& a, const Sizes& b) { return a[3] > b[3] ? a[3] : b[3]; }

void forward(const std::string& dtype, const Described& query, const Described& key, const Described& value,
             const Described& output, int64_t lse, int64_t counter, const ScoreOptions& scores,
             const ExtraOptions& extras, const CenterOptions& centers, int64_t stream) {
    const Sizes rows = std::get<1>(query), keys = std::get<1>(key), values = std::get<1>(value);
    check_centers(centers, rows, keys);
    const SoftmaxForwardCall call = {tensor("query", query, rows),
                                     tensor("key", key, key_sizes(rows, keys)),
                                     tensor("value", value, {keys[0], keys[1], keys[2], values[3]}),
                                     tensor("output", output, {rows[0], rows[1], rows[2], values[3]}),
                                     lse,
                                     counter,
                                     scores,
                                     extras,
                                     centers,
                                     stream};
    dispatch(dtype, wider(rows, values),
             [&](auto type, auto width) { softmax_forward<decltype(type), width()>(call); });
}

void sample(const std::string& dtype, const Described& query, const Described& key, int64_t seed, int64_t index,
            int64_t score, int64_t lse, int64_t entropy, int64_t counter, int samples, const ScoreOptions& scores,
            int64_t stream) {
    const Sizes rows = std::get<1>(query), keys = std::get<1>(key);
    require(samples > 0, "samples must be positive");
    const SampleForwardCall call = {tensor("query", query, rows),
                                    tensor("key", key, key_sizes(rows, keys)),
                                    seed,
                                    index,
                                    score,
                                    lse,
                                    entropy,
                                    counter,
                                    samples,
                                    scores,
                                    stream};
    dispatch(dtype, rows[3], [&](auto type, auto width) { sample_forward<decltype(type), width()>(call); });
}

void backward(const std::string& dtype, const Described& query, const Described& key, const Described& value,
              const Described& output, const Described& grad_output, const Described& grad_query,
              const Described& grad_key, const Described& grad_value, int64_t lse, int64_t row, int64_t counter,
              int64_t row_space, int64_t query_space, const ScoreOptions& scores, const ExtraOptions& extras,
              const CenterOptions& centers, int64_t stream) {
    const Sizes rows = std::get<1>(query), keys = std::get<1>(key), values = std::get<1>(value);
    check_centers(centers, rows, keys);
    const Sizes outputs = {rows[0], rows[1], rows[2], values[3]};
    const SoftmaxBackwardCall call = {tensor("query", query, rows),
                                      tensor("key", key, key_sizes(rows, keys)),
                                      tensor("value", value, {keys[0], keys[1], keys[2], values[3]}),
                                      tensor("output", output, outputs),
                                      tensor("grad_output", grad_output, outputs),
                                      tensor("grad_query", grad_query, rows),
                                      tensor("grad_key", grad_key, keys),
                                      tensor("grad_value", grad_value, values),
                                      lse,
                                      row,
                                      0,
                                      counter,
                                      row_space,
                                      query_space,
                                      scores,
                                      extras,
                                      centers,
                                      stream};
    dispatch(dtype, wider(rows, values),
             [&](auto type, auto width) { softmax_backward<decltype(type), width()>(call); });
}

void distribution_backward(const std::string& dtype, const Described& query, const Described& key,
                           const Described& grad_query, const Described& grad_key, int64_t lse, int64_t row,
                           int64_t entropy, int64_t counter, int64_t row_space, int64_t query_space,
                           const ScoreOptions& scores, int64_t stream) {
    const Sizes rows = std::get<1>(query), keys = std::get<1>(key);
    SoftmaxBackwardCall call = {};
    call.query = tensor("query", query, rows);
    call.key = tensor("key", key, key_sizes(rows, keys));
    call.grad_query = tensor("grad_query", grad_query, rows);
    call.grad_key = tensor("grad_key", grad_key, keys);
    call.lse = lse;
    call.row = row;
    call.entropy = entropy;
    call.counter = counter;
    call.row_space = row_space;
    call.query_space = query_space;
    call.scores = scores;
    call.stream = stream;
    dispatch(dtype, rows[3], [&](auto type, auto width) { softmax_backward<decltype(type), width()>(call); });
}

}  // namespace

PYBIND11_MODULE(ATTNKERN_MODULE, module) {
    module.doc() = "Attention kernels for compute capability 9.0.";
    py::class_<ScoreOptions>(module, "ScoreOptions", py::module_local(), "scale; left, right (-1: unlimited); offset")
        .def(py::init<float, int64_t, int64_t, int64_t>());
    py::class_<ExtraOptions>(module, "ExtraOptions", py::module_local(),
                             "soft cap, mask and its gradient, dropout; none by default")
        .def(py::init())
        .def(py::init([](float softcap, const Described& mask, int mask_bytes, const Described& mask_gradient,
                         int64_t seed, int64_t dropout_threshold, float dropout_scale, int first_key) {
            require(mask_bytes == 1 || mask_bytes == 2 || mask_bytes == 4, "mask_bytes must be 1 (bool), 2 or 4");
            require(first_key % 4 == 0 || dropout_threshold == 0, "first_key must be a multiple of 4 for dropout");
            return ExtraOptions{true,       softcap, plain_tensor(mask), plain_tensor(mask_gradient),
                                mask_bytes, seed,    dropout_threshold,  dropout_scale,
                                first_key};
        }));
    py::class_<CenterOptions>(
        module, "CenterOptions", py::module_local(),
        "learned centres: Gaussian (0 none, 1 after the softmax, 2 inside), then the addresses of "
        "rows, blocks and the gradients of centre and sigma; no centres by default")
        .def(py::init())
        .def(py::init([](int gaussian, int64_t rows, int64_t blocks, int64_t grad_center, int64_t grad_sigma) {
            require(0 <= gaussian && gaussian <= 2, "gaussian must be 0, 1 or 2");
            require(rows % 32 == 0, "rows: address is not a multiple of 32 bytes");
            return CenterOptions{true, gaussian, rows, blocks, grad_center, grad_sigma};
        }));
    module.def("softmax_forward", &forward);
    module.def("sample_forward", &sample);
    module.def("softmax_backward", &backward);
    module.def("distribution_backward", &distribution_backward);
    ptx::bind_machine(module);
}
