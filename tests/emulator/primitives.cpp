// The small kernels, emulated, and which tile of a persistent grid comes when.
#include "bindings.h"
#include "instances/fill.h"

PYBIND11_MODULE(emulator_primitives, module) {
    primitives::define(module);
    module.def("set_options", [](uint64_t seed, bool checks, int multiprocessors) {
        emulator::options() = {seed, checks, multiprocessors};
    });
    module.def("register_global", [](int64_t address, size_t bytes, bool initialised) {
        emulator::register_global(reinterpret_cast<void*>(address), bytes, initialised);
    });
    module.def("forget_globals", &emulator::forget_globals);
    module.def("place", [](int64_t tiles, int64_t heads, int64_t section, bool last_first, int number) {
        const core::Place place = instances::tiling_of("place", tiles, heads, section, last_first, 0)[number];
        return std::make_pair(place.tile, place.head);
    });
    module.def("window", [](int64_t left, int64_t right, int64_t offset, int row, int len_k) {
        const core::Range keys = instances::window_of({1, left, right, offset}).keys_of(row, len_k);
        return std::make_pair(keys.begin, keys.end);
    });
}
