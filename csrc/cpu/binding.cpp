// The Python module: fills the call, runs it without Python's lock.
#include <pybind11/stl.h>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "torch_tensors.h"

namespace py = pybind11;

#if defined(__x86_64__)
namespace amx {
extern const Kernels kernels;
}
namespace avx512_bf16 {
extern const Kernels kernels;
}
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

#if defined(__x86_64__)
// Whether there is one that multiplies bfloat16; the system has to be asked for it.
bool has_matrix_unit() {
#if defined(__linux__)
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned eax, ebx, ecx, edx;
    const bool has_bf16 = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx >> 22 & 1) && (edx >> 24 & 1);
    return has_bf16 && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
    return false;
#endif
}
#endif

// Those that this machine can run, best first.
std::vector<const Kernels*> usable() {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool has_bf16 = has_avx512 && __builtin_cpu_supports("avx512bf16");
    const bool fast_bf16 = has_bf16 && __builtin_cpu_is("amd");  // Intel's take twice as long as widened numbers
    if (has_bf16 && has_matrix_unit()) found.push_back(&amx::kernels);
    if (has_bf16 && fast_bf16) found.push_back(&avx512_bf16::kernels);
    if (has_avx512) found.push_back(&avx512::kernels);
    if (has_bf16 && !fast_bf16) found.push_back(&avx512_bf16::kernels);
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
    torch_tensors::Names::get();
    module.def("usable", [] {
        std::vector<std::string> names;
        for (const Kernels* kernels : usable()) names.push_back(kernels->name);
        return names;
    });
    module.def("chosen", [] { return chosen->name; });
    module.def("lanes", [] { return chosen->lanes; });
    module.def("choose", &choose);
    module.def("spin", [](int unit, int64_t rounds, int threads) {
        py::gil_scoped_release release;
        return chosen->spin(static_cast<Unit>(unit), rounds, threads);
    });
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
            [](const Call& problem, const Tensor& query, const Tensor& key, const Tensor& value, int threads) {
                Call call = problem;
                call.query = query, call.key = key, call.value = value;
                call.threads = threads;
                return call;
            },
            "The same with its tensors")
        .def("set_mask", [](Call& call, const Mask& mask) { call.mask = mask; })
        .def("set_seed", [](Call& call, int64_t seed) { call.seed = seed; })
        .def("set_offsets", [](Call& call, Address offsets) { call.offsets = offsets; })
        .def("set_sequences",
             [](Call& call, Address cu_q, Address cu_k, int64_t total_rows, int64_t total_keys) {
                 call.cu_q = cu_q, call.cu_k = cu_k;
                 call.total_rows = total_rows;
                 check_sequences(call, total_keys);
             })
        .def("set_centers",
             [](Call& call, Address center, Address sigma, bool inside) { call.centers = {center, sigma, inside}; });
    module.def("forward", [](const Call& call, const Tensor& output, Address lse) {
        run(chosen->forward, call, ForwardResults{output, lse});
    });
    module.def("sample", [](const Call& call, int64_t count, const Tensor& output, int64_t output_stride, Address index,
                            Address score, Address lse, Address entropy) {
        run(chosen->sample, call, Samples{count, output, output_stride, index, score, lse, entropy});
    });
    module.def("weights", [](const Call& call, Address lse, const Mask& weights, bool mean) {
        run(chosen->weights, call, Weights{lse, weights.entries, mean});
    });
    module.def("backward", [](const Call& call, Address lse, const Tensor& output, const Tensor& grad_output,
                              const Mask& grad_weights, Address row, Address entropy, const Tensor& grad_query,
                              const Tensor& grad_key, const Tensor& grad_value, const Mask& grad_mask,
                              Address grad_center, Address grad_sigma) {
        const Backward given = {lse,        output,   grad_output, grad_weights, row,         entropy,
                                grad_query, grad_key, grad_value,  grad_mask,    grad_center, grad_sigma};
        run(chosen->backward, call, given);
        if (grad_mask.kind) run(chosen->mask_gradient, call, given);
    });
    module.def("sparse_backward", [](const Call& call, int64_t count, Address index, Address score, Address grad_score,
                                     const Tensor& grad_output, int64_t grad_output_stride, const Tensor& grad_query,
                                     const Tensor& grad_key, const Tensor& grad_value) {
        run(chosen->sparse_backward, call,
            SparseGiven{count, index, score, grad_score, grad_output, grad_output_stride, grad_query, grad_key,
                        grad_value});
    });
    py::class_<AoaCall>(module, "AoaCall", py::module_local())
        .def(py::init([](const std::array<int64_t, 4>& sizes, const Tensor& document, const Tensor& question,
                         Address document_mask, Address question_mask, Address kept, int threads) {
            return AoaCall{sizes[0], sizes[1],      sizes[2],      sizes[3], document,
                           question, document_mask, question_mask, kept,     threads};
        }));
    module.def("aoa_forward",
               [](const AoaCall& call, const Tensor& attention, Address row_lse, Address column_lse, Address beta) {
                   run(chosen->aoa_forward, call, AoaForward{attention, row_lse, column_lse, beta});
               });
    module.def("aoa_backward", [](const AoaCall& call, const Tensor& grad, Address column_lse, Address beta,
                                  const Tensor& grad_document, const Tensor& grad_question) {
        run(chosen->aoa_backward, call, AoaBackward{grad, column_lse, beta, grad_document, grad_question});
    });
}
