// megatron_vlm._native: the Python face of csrc.  Only conversions live here; an operator's work is in its own file.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "assemble.h"

namespace py = pybind11;

namespace {

// Raised by one whenever a function's arguments or meaning change; megatron_vlm/ops/native.py holds the number it
// expects, so that an extension built from older sources is told from a fitting one.
constexpr int kInterface = 1;

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

template <typename T>
T* writable(Array<T>& array, py::ssize_t size, const char* name) {
  if (array.ndim() != 1 || array.size() != size) {
    throw std::invalid_argument(std::string(name) + " must have " + std::to_string(size) + " elements");
  }
  return array.mutable_data();  // throws where the array is read-only
}

py::tuple assemble_packs(const py::list& ids, const Array<std::uint8_t>& modality, const Array<std::int64_t>& loss_from,
                         const Array<std::int64_t>& segments_per_pack, std::int64_t sequence_length,
                         std::int64_t image_token_id, std::int64_t pad_id, Array<std::int64_t> tokens,
                         Array<std::int64_t> labels, Array<float> loss_mask, Array<std::int64_t> position_ids,
                         Array<std::uint8_t> label_modality) {
  const auto count = static_cast<py::ssize_t>(ids.size());
  if (modality.ndim() != 1 || modality.size() != count || loss_from.ndim() != 1 || loss_from.size() != count) {
    throw std::invalid_argument("modality and loss_from must have one element a segment");
  }
  if (segments_per_pack.ndim() != 1) throw std::invalid_argument("segments_per_pack must have one dimension");

  // `held` keeps every array alive while the interpreter runs other threads below.
  std::vector<Array<std::int32_t>> held;
  std::vector<megatron_vlm::SegmentView> segments;
  held.reserve(count);
  segments.reserve(count);
  for (py::ssize_t i = 0; i < count; ++i) {
    const py::handle item = ids[i];
    if (!Array<std::int32_t>::check_(item)) throw std::invalid_argument("ids must be contiguous int32 arrays");
    held.push_back(py::reinterpret_borrow<Array<std::int32_t>>(item));
    if (held.back().ndim() != 1) throw std::invalid_argument("ids must have one dimension");
    segments.push_back({held.back().data(), held.back().size(), loss_from.at(i), modality.at(i)});
  }
  const std::int64_t* first = segments_per_pack.data();
  const std::vector<std::int64_t> per_pack(first, first + segments_per_pack.size());

  const py::ssize_t size = segments_per_pack.size() * sequence_length;
  const megatron_vlm::BatchBuffers buffers{
      writable(tokens, size, "tokens"), writable(labels, size, "labels"), writable(loss_mask, size, "loss_mask"),
      writable(position_ids, size, "position_ids"), writable(label_modality, size, "label_modality")};
  megatron_vlm::BatchIndex index;
  {
    py::gil_scoped_release release;
    index = megatron_vlm::assemble_packs(segments, per_pack, {sequence_length, image_token_id, pad_id}, buffers);
  }
  return py::make_tuple(to_numpy(std::move(index.cu_seqlens)), index.max_seqlen,
                        to_numpy(std::move(index.image_slots)));
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Native operators of megatron_vlm. Call them through megatron_vlm.ops, which checks what it passes.";
  module.attr("INTERFACE") = kInterface;
  module.def("assemble_packs", &assemble_packs, py::arg("ids").noconvert(), py::arg("modality").noconvert(),
             py::arg("loss_from").noconvert(), py::arg("segments_per_pack").noconvert(), py::arg("sequence_length"),
             py::arg("image_token_id"), py::arg("pad_id"), py::arg("tokens").noconvert(), py::arg("labels").noconvert(),
             py::arg("loss_mask").noconvert(), py::arg("position_ids").noconvert(),
             py::arg("label_modality").noconvert(),
             "Write one batch into the given arrays; return (cu_seqlens, max_seqlen, image_slots).");
}
