// What the Python module offers besides kernels: fewer multiprocessors, for tests.
#pragma once
#include <pybind11/pybind11.h>

#include "ptx/launch.h"

namespace ptx {

inline void bind_machine(pybind11::module_& module) {
    module.def("limit_multiprocessors", [](int most) { most_multiprocessors = most; });
}

}  // namespace ptx
