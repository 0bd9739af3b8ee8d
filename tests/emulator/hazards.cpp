// The hazard cases as a Python module: cases() tells which hazard each is about, run() runs one.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#include "hazards_of_barriers.h"
#include "hazards_of_copies.h"
#include "hazards_of_products.h"

namespace hazards {
namespace {

using Launch = void (*)(const Params&);

struct Entry {
    const char* hazard;
    Launch clean, planted;
};

template <class Kernel>
void launch(const Params& params) {
    ptx::launch<Kernel>(params, 1, nullptr);
}

template <template <bool> class... Kernels>
std::map<std::string, Entry> list() {
    return {{Kernels<false>::name, {Kernels<false>::hazard, launch<Kernels<false>>, launch<Kernels<true>>}}...};
}

const std::map<std::string, Entry>& entries() {
    static const auto all =
        list<ReadBeforeWait, StaleParity, OneLaneWaits, LoadOverRead, EarlyRelease, StoreOverwritten, StoreUnfenced,
             LoadUnfenced, StoreLeftBehind, LoadLeftBehind, TooFewBytes, TooManyBytes, MisalignedLoad, BarrierTwice,
             BarrierForgotten, BarrierUnfenced, BarrierUnordered, BarrierOverwritten, TooManyArrivals, TxOverflow,
             NamedBarrierCounts, NamedBarrierAbsent, NamedBarrierOneWay, WarpRace, Uninitialised, OutOfShared,
             OutOfGlobal, DivergentWarp, LanesMissing, RegistersExhausted, ProductUnwaitedOperand, OperandOverwritten,
             OperandStoredOver, OperandUnfenced, OperandUnordered, ProductUnfenced, FencedTooEarly, FragmentsModified,
             AccumulatorModified, DivergentProduct, WarpLeftOut, ProductLeftBehind, BadDescriptor,
             AccumulatorReadEarly>();
    return all;
}

// Name of each case, and a pattern of the report.
std::map<std::string, std::string> cases() {
    std::map<std::string, std::string> names;
    for (const auto& [name, entry] : entries()) names[name] = entry.hazard;
    return names;
}

// How many words of the result are wrong.
int run(const std::string& name, bool planted, uint64_t seed, bool checks) {
    alignas(16) static uint16_t input[SIDE * SIDE], identity[SIDE * SIDE];
    alignas(16) static float result[WORDS];
    for (int i = 0; i < SIDE * SIDE; ++i) {
        input[i] = emulator::float_to_bf16(static_cast<float>(i % 251 - 125));
        identity[i] = emulator::float_to_bf16(i % SIDE == i / SIDE ? 1.0f : 0.0f);
    }
    for (float& word : result) word = NAN;
    const auto map = [](const void* data) {
        constexpr int64_t ROW = SIDE * 2, ALL = SIDE * ROW;
        ptx::bind_context();
        return ptx::make_tensor_map(ptx::Element::bf16, data, {SIDE, SIDE, 1, 1}, {ROW, ALL, ALL}, SIDE);
    };
    emulator::forget_globals();
    emulator::register_global(input, sizeof(input));
    emulator::register_global(identity, sizeof(identity));
    emulator::register_global(result, sizeof(result), false);
    emulator::options() = {seed, checks};
    const Entry& entry = entries().at(name);
    (planted ? entry.planted
             : entry.clean)({map(input), map(identity), map(result), reinterpret_cast<const float*>(input), result});
    int wrong = 0;
    for (int i = 0; i < WORDS; ++i) wrong += std::memcmp(result + i, input + 2 * i, 4) != 0;
    return wrong;
}

PYBIND11_MODULE(emulator_hazards, module) {
    module.def("cases", &cases);
    module.def("run", &run, pybind11::arg("name"), pybind11::arg("planted"), pybind11::arg("seed"),
               pybind11::arg("checks") = true);
}

}  // namespace
}  // namespace hazards
