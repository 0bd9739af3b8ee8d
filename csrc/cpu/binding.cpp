// The Python module: fills the call, runs it without Python's lock. Tensors are addresses and strides; no torch here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "call.h"

namespace py = pybind11;

#if defined(__x86_64__)
namespace avx512 {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
#endif
#if defined(__aarch64__)
#define plain neon
#endif
namespace plain {
extern const Kernels kernels;
}

namespace {

// Those that this machine can run, best first.
std::vector<const Kernels*> usable() {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        found.push_back(&avx512::kernels);
    if (has_avx2) found.push_back(&avx2::kernels);
#endif
    found.push_back(&plain::kernels);
    return found;
}

const Kernels* chosen = usable().front();

void choose(const std::string& name) {
    for (const Kernels* kernels : usable())
        if (name == kernels->name) {
            chosen = kernels;
            return;
        }
    throw std::invalid_argument("there are no kernels named " + name + " that this machine can run");
}

using Strides = std::array<int64_t, 4>;
using Described = std::tuple<int64_t, Strides, int>;  // address, strides in numbers, Number (of a bool any)

Tensor tensor(const Described& described) {
    Tensor found;
    found.data = reinterpret_cast<char*>(std::get<0>(described));
    for (int i = 0; i < 4; ++i) found.strides[i] = std::get<1>(described)[i];
    found.number = static_cast<Number>(std::get<2>(described));
    return found;
}

template <class Number>
Number* pointer(int64_t address) {
    return reinterpret_cast<Number*>(address);
}

void check_sequences(const Call& call, int64_t total_keys) {
    if (!call.cu_q) return;
    const auto check = [&](const int64_t* begins, int64_t longest, int64_t total) {
        for (int64_t b = 0; b < call.batch; ++b)
            if (begins[b] < 0 || begins[b + 1] < begins[b] || begins[b + 1] - begins[b] > longest ||
                begins[b + 1] > total)
                throw std::invalid_argument("packed sequences must follow one another within the tensors");
    };
    check(call.cu_q, call.len_q, call.total_rows);
    check(call.cu_k, call.len_k, total_keys);
}

template <class Call, class Results>
void run(void (*kernel)(const Call&, const Results&), const Call& call, const Results& results) {
    py::gil_scoped_release release;
    kernel(call, results);
}

}  // namespace

PYBIND11_MODULE(ATTNKERN_MODULE, module) {
    module.doc() = "Attention kernels for CPUs.";
    module.def("usable", [] {
        std::vector<std::string> names;
        for (const Kernels* kernels : usable()) names.push_back(kernels->name);
        return names;
    });
    module.def("chosen", [] { return chosen->name; });
    module.def("lanes", [] { return chosen->lanes; });
    module.def("choose", &choose);
    py::class_<Call>(module, "Call", py::module_local(), py::dynamic_attr(),
                     "What a problem says: sizes, scale, softcap, causal, left, right, offset, selector, dropout's "
                     "threshold and scale, queries of a tile")
        .def(py::init([](const std::array<int64_t, 7>& sizes, float scale, float softcap, bool causal, int64_t left,
                         int64_t right, int64_t offset, int selector, int64_t threshold, float dropout_scale,
                         int tile_rows) {
            Call call = {};
            call.batch = sizes[0], call.heads = sizes[1], call.kv_heads = sizes[2], call.len_q = sizes[3];
            call.len_k = sizes[4], call.head_dim = sizes[5], call.value_dim = sizes[6], call.total_rows = sizes[3];
            call.scale = scale, call.softcap = softcap, call.causal = causal, call.left = left, call.right = right;
            call.offset = offset, call.selector = static_cast<Selector>(selector);
            call.dropout = {static_cast<uint32_t>(threshold), dropout_scale};
            call.tile_rows = tile_rows;
            return call;
        }))
        .def(
            "of",
            [](const Call& problem, const Described& query, const Described& key, const Described& value, int threads) {
                Call call = problem;
                call.query = tensor(query), call.key = tensor(key), call.value = tensor(value);
                call.threads = threads;
                return call;
            },
            "The same with its tensors")
        .def("set_mask", [](Call& call, int kind,
                            const Described& mask) { call.mask = {static_cast<Mask::Kind>(kind), tensor(mask)}; })
        .def("set_seed", [](Call& call, int64_t seed) { call.seed = seed; })
        .def("set_offsets", [](Call& call, int64_t offsets) { call.offsets = pointer<int64_t>(offsets); })
        .def("set_sequences",
             [](Call& call, int64_t cu_q, int64_t cu_k, int64_t total_rows, int64_t total_keys) {
                 call.cu_q = pointer<int64_t>(cu_q), call.cu_k = pointer<int64_t>(cu_k);
                 call.total_rows = total_rows;
                 check_sequences(call, total_keys);
             })
        .def("set_centers",
             [](Call& call, int gaussian, int64_t center, int64_t nearest, int64_t mirror, int64_t per_sigma) {
                 call.centers = {pointer<float>(center), static_cast<Centers::Gaussian>(gaussian),
                                 pointer<float>(nearest), pointer<float>(mirror), pointer<float>(per_sigma)};
             });
    module.def("forward", [](const Call& call, const Described& output, int64_t lse) {
        run(chosen->forward, call, ForwardResults{tensor(output), pointer<float>(lse)});
    });
    module.def("sample", [](const Call& call, int64_t count, const Described& output, int64_t output_stride,
                            int64_t index, int64_t score, int64_t lse, int64_t entropy) {
        run(chosen->sample, call,
            Samples{count, tensor(output), output_stride, pointer<int64_t>(index), pointer<float>(score),
                    pointer<float>(lse), pointer<float>(entropy)});
    });
    module.def("weights", [](const Call& call, int64_t lse, const Described& weights, bool mean) {
        run(chosen->weights, call, Weights{pointer<float>(lse), tensor(weights), mean});
    });
    module.def("backward", [](const Call& call, int64_t lse, const Described& output, const Described& grad_output,
                              const Described& grad_weights, int64_t row, int64_t entropy, const Described& grad_query,
                              const Described& grad_key, const Described& grad_value, const Described& grad_mask,
                              const Strides& mask_sizes, int64_t grad_center, int64_t grad_sigma) {
        Backward given = {};
        given.lse = pointer<float>(lse);
        given.output = tensor(output), given.grad_output = tensor(grad_output);
        given.grad_weights = {std::get<0>(grad_weights) ? Mask::FLOAT : Mask::NONE, tensor(grad_weights)};
        given.row = pointer<float>(row), given.entropy = pointer<float>(entropy);
        given.grad_query = tensor(grad_query), given.grad_key = tensor(grad_key), given.grad_value = tensor(grad_value);
        given.grad_mask = tensor(grad_mask);
        for (int i = 0; i < 4; ++i) given.mask_sizes[i] = mask_sizes[i];
        given.grad_center = pointer<float>(grad_center), given.grad_sigma = pointer<float>(grad_sigma);
        run(chosen->backward, call, given);
        if (given.grad_mask) run(chosen->mask_gradient, call, given);
    });
    py::class_<AoaCall>(module, "AoaCall", py::module_local())
        .def(py::init([](std::array<int64_t, 4> sizes, const Described& document, const Described& question,
                         int64_t document_mask, int64_t question_mask, int64_t kept, int threads) {
            return AoaCall{sizes[0],
                           sizes[1],
                           sizes[2],
                           sizes[3],
                           tensor(document),
                           tensor(question),
                           pointer<bool>(document_mask),
                           pointer<bool>(question_mask),
                           pointer<float>(kept),
                           threads};
        }));
    module.def("aoa_forward", [](const AoaCall& call, const Described& attention, int64_t row_lse, int64_t column_lse,
                                 int64_t beta) {
        run(chosen->aoa_forward, call,
            AoaForward{tensor(attention), pointer<float>(row_lse), pointer<float>(column_lse), pointer<float>(beta)});
    });
    module.def("aoa_backward", [](const AoaCall& call, const Described& grad, int64_t column_lse, int64_t beta,
                                  const Described& grad_document, const Described& grad_question) {
        run(chosen->aoa_backward, call,
            AoaBackward{tensor(grad), pointer<float>(column_lse), pointer<float>(beta), tensor(grad_document),
                        tensor(grad_question)});
    });
}
