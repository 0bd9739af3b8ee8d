// Torch's tensors as arguments of the module's functions, by what they say of themselves in Python: without torch's
// headers one build serves every version of it.
#pragma once
#include <pybind11/pybind11.h>

#include "call.h"

// Where the numbers of a contiguous tensor begin; null for None.
struct Address {
    void* data = nullptr;

    template <class Number>
    operator Number*() const {
        return static_cast<Number*>(data);
    }
};

namespace torch_tensors {

namespace py = pybind11;

// What is looked up once.
struct Names {
    PyObject *data_ptr, *stride, *shape, *dtype, *is_contiguous;
    PyObject *bfloat16, *float16, *boolean;

    static const Names& get() {
        static const Names names;
        return names;
    }

  private:
    Names() {
        const auto name = [](const char* text) { return PyUnicode_InternFromString(text); };
        data_ptr = name("data_ptr"), stride = name("stride"), shape = name("shape"), dtype = name("dtype");
        is_contiguous = name("is_contiguous");
        const py::module_ torch = py::module_::import("torch");
        const auto constant = [&](const char* text) { return torch.attr(text).cast<py::object>().release().ptr(); };
        bfloat16 = constant("bfloat16"), float16 = constant("float16"), boolean = constant("bool");
    }
};

inline py::object checked(PyObject* found) {
    if (!found) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(found);
}

inline py::object call(py::handle tensor, PyObject* method) {
    return checked(PyObject_CallMethodNoArgs(tensor.ptr(), method));
}

inline py::object attribute(py::handle tensor, PyObject* name) { return checked(PyObject_GetAttr(tensor.ptr(), name)); }

inline void* address(py::handle tensor) { return PyLong_AsVoidPtr(call(tensor, Names::get().data_ptr).ptr()); }

// Sizes or strides. Of the four dimensions, one that has fewer lacks those behind the batch.
inline void numbers(const py::object& found, int64_t (&to)[4], int64_t lacking) {
    const Py_ssize_t size = PyTuple_Size(found.ptr());
    if (size < 1 || size > 4) throw py::type_error("tensors of the kernels for CPUs have one to four dimensions");
    for (Py_ssize_t i = 0; i < 4; ++i) {
        const Py_ssize_t place = i ? i - (4 - size) : 0;
        to[i] = i && place < 1 ? lacking : PyLong_AsLongLong(PyTuple_GET_ITEM(found.ptr(), place));
    }
}

inline Tensor tensor(py::handle source, const py::object& dtype) {
    const Names& names = Names::get();
    Tensor found;
    found.data = static_cast<char*>(address(source));
    numbers(call(source, names.stride), found.strides, 0);
    found.number = dtype.ptr() == names.bfloat16  ? Number::bfloat16
                   : dtype.ptr() == names.float16 ? Number::float16
                                                  : Number::float32;
    return found;
}

}  // namespace torch_tensors

namespace pybind11::detail {

template <>
struct type_caster<Address> {
    PYBIND11_TYPE_CASTER(Address, const_name("torch.Tensor | None"));
    bool load(handle source, bool) {
        if (source.is_none()) return true;
        const object whole = torch_tensors::call(source, torch_tensors::Names::get().is_contiguous);
        if (whole.ptr() != Py_True) throw value_error("rows, offsets and sequences must be contiguous");
        value.data = torch_tensors::address(source);
        return true;
    }
};

template <>
struct type_caster<Tensor> {
    PYBIND11_TYPE_CASTER(Tensor, const_name("torch.Tensor | None"));
    bool load(handle source, bool) {
        if (!source.is_none())
            value = torch_tensors::tensor(source, torch_tensors::attribute(source, torch_tensors::Names::get().dtype));
        return true;
    }
};

template <>
struct type_caster<Mask> {
    PYBIND11_TYPE_CASTER(Mask, const_name("torch.Tensor | None"));
    bool load(handle source, bool) {
        if (source.is_none()) return true;
        const auto& names = torch_tensors::Names::get();
        const object dtype = torch_tensors::attribute(source, names.dtype);
        value.kind = dtype.ptr() == names.boolean ? Mask::BOOL : Mask::FLOAT;
        value.entries = torch_tensors::tensor(source, dtype);
        torch_tensors::numbers(torch_tensors::attribute(source, names.shape), value.sizes, 1);
        for (int i = 0; i < 4; ++i)
            if (value.sizes[i] == 1) value.entries.strides[i] = 0;
        return true;
    }
};

}  // namespace pybind11::detail
