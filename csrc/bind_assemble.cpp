#include "assemble.h"
#include "bindings.h"

namespace megatron_vlm {
namespace {

py::tuple bound_assemble_packs(const py::list& ids, const Array<std::uint8_t>& modality, const Array<std::int64_t>& loss_from,
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
  std::vector<SegmentView> segments;
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
  const BatchBuffers buffers{
      writable(tokens, size, "tokens"), writable(labels, size, "labels"), writable(loss_mask, size, "loss_mask"),
      writable(position_ids, size, "position_ids"), writable(label_modality, size, "label_modality")};
  BatchIndex index;
  {
    py::gil_scoped_release release;
    index = assemble_packs(segments, per_pack, {sequence_length, image_token_id, pad_id}, buffers);
  }
  return py::make_tuple(to_numpy(std::move(index.cu_seqlens)), index.max_seqlen,
                        to_numpy(std::move(index.image_slots)));
}

}  // namespace

void bind_assemble(py::module_& module) {
  module.def("assemble_packs", &bound_assemble_packs, py::arg("ids").noconvert(), py::arg("modality").noconvert(),
             py::arg("loss_from").noconvert(), py::arg("segments_per_pack").noconvert(), py::arg("sequence_length"),
             py::arg("image_token_id"), py::arg("pad_id"), py::arg("tokens").noconvert(), py::arg("labels").noconvert(),
             py::arg("loss_mask").noconvert(), py::arg("position_ids").noconvert(),
             py::arg("label_modality").noconvert(),
             "Write one batch into the given arrays; return (cu_seqlens, max_seqlen, image_slots).");
}

}  // namespace megatron_vlm
