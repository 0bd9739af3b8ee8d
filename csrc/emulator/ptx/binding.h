// What the Python module offers besides kernels: the machine's options, and the memory that kernels may touch.
#pragma once
#include <pybind11/pybind11.h>

#include "emulator/options.h"

namespace ptx {

inline void bind_machine(pybind11::module_& module) {
    module.def("set_options", [](uint64_t seed, bool checks, int multiprocessors) {
        emulator::options() = {seed, checks, multiprocessors};
    });
    module.def("limit_multiprocessors", [](int most) { emulator::options().multiprocessors = most; });
    module.def("register_global", [](int64_t address, size_t bytes, bool initialised) {
        emulator::register_global(reinterpret_cast<const void*>(address), bytes, initialised);
    });
    module.def("forget_globals", &emulator::forget_globals);
}

}  // namespace ptx
