// The small kernels, on a GPU.
#include "bindings.h"

PYBIND11_MODULE(device_primitives, module) { primitives::define(module); }
