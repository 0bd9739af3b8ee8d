// What the Python module offers besides kernels: on the device, nothing.
#pragma once
#include <pybind11/pybind11.h>

namespace ptx {

inline void bind_machine(pybind11::module_&) {}

}  // namespace ptx
