// The small kernels, emulated.
#include "bindings.h"

PYBIND11_MODULE(emulator_primitives, module) {
    primitives::define(module);
    module.def("set_options", [](uint64_t seed, bool checks, int multiprocessors) {
        emulator::options() = {seed, checks, multiprocessors};
    });
    module.def("register_global", [](int64_t address, size_t bytes, bool initialised) {
        emulator::register_global(reinterpret_cast<void*>(address), bytes, initialised);
    });
    module.def("forget_globals", &emulator::forget_globals);
}
