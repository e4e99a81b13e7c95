// What the bindings of all operators share.  Only files named bind_*.cpp and module.cpp know Python.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace megatron_vlm {

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

// Gives a vector's memory to numpy, without a copy.
template <typename T>
py::array_t<T> to_numpy(std::vector<T>&& values) {
  auto owner = std::make_unique<std::vector<T>>(std::move(values));
  const auto size = static_cast<py::ssize_t>(owner->size());
  T* data = owner->data();
  py::capsule release(owner.get(), [](void* memory) { delete static_cast<std::vector<T>*>(memory); });
  owner.release();
  return py::array_t<T>({size}, {static_cast<py::ssize_t>(sizeof(T))}, data, release);
}

// The elements of a one-dimensional array that has to have `size` of them and to be writable.
template <typename T>
T* writable(Array<T>& array, py::ssize_t size, const char* name) {
  if (array.ndim() != 1 || array.size() != size) {
    throw std::invalid_argument(std::string(name) + " must have " + std::to_string(size) + " elements");
  }
  return array.mutable_data();  // throws where the array is read-only
}

// Tensors come as addresses (torch's data_ptr), so that nothing here depends on a version of torch.  The Python side
// checks dtype, device and size before it passes one.
template <typename T>
T* at_address(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_assemble(py::module_& module);
void bind_fuse(py::module_& module);
void bind_patchify(py::module_& module);
void bind_pack_plan(py::module_& module);
void bind_resize(py::module_& module);
void bind_window_rows(py::module_& module);

}  // namespace megatron_vlm
