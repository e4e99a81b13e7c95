#include <optional>

#include "assemble.h"
#include "bindings.h"
#include "indexed_source.h"

namespace megatron_vlm {
namespace {

// The arrays that a batch is written into, in the order in which Python passes them.
struct Outputs {
  Array<std::int64_t> tokens, labels;
  Array<float> loss_mask;
  Array<std::int64_t> position_ids;
  Array<std::uint8_t> label_modality, token_modality;
  Array<std::int32_t> row_index;

  BatchBuffers checked(py::ssize_t size) {
    return {writable(tokens, size, "tokens"),
            writable(labels, size, "labels"),
            writable(loss_mask, size, "loss_mask"),
            writable(position_ids, size, "position_ids"),
            writable(label_modality, size, "label_modality"),
            writable(token_modality, size, "token_modality"),
            writable(row_index, size, "row_index")};
  }
};

std::vector<std::int64_t> to_vector(const Array<std::int64_t>& array, const char* name) {
  if (array.ndim() != 1) throw std::invalid_argument(std::string(name) + " must have one dimension");
  return {array.data(), array.data() + array.size()};
}

py::tuple bound_assemble_packs(const py::list& ids, const Array<std::uint8_t>& modality,
                               const Array<std::int64_t>& loss_from, const Array<std::int64_t>& masked_per_segment,
                               const Array<std::int64_t>& masked, const Array<std::int64_t>& segments_per_pack,
                               std::int64_t sequence_length, std::int64_t image_token_id, std::int64_t pad_id,
                               Outputs& out) {
  const auto count = static_cast<py::ssize_t>(ids.size());
  if (modality.ndim() != 1 || modality.size() != count || loss_from.ndim() != 1 || loss_from.size() != count ||
      masked_per_segment.ndim() != 1 || masked_per_segment.size() != count) {
    throw std::invalid_argument("modality, loss_from and masked_per_segment must have one element a segment");
  }
  if (masked.ndim() != 2 || masked.shape(1) != 2) throw std::invalid_argument("masked must be [ranges, 2]");

  // `held` keeps every array alive while the interpreter runs other threads below.
  std::vector<Array<std::int32_t>> held;
  Segments segments;
  segments.per_pack = to_vector(segments_per_pack, "segments_per_pack");
  held.reserve(count);
  segments.views.reserve(count);
  segments.pieces.reserve(count);
  for (py::ssize_t i = 0; i < masked.shape(0); ++i) segments.masked.push_back({masked.at(i, 0), masked.at(i, 1)});
  std::size_t next_masked = 0;
  for (py::ssize_t i = 0; i < count; ++i) {
    const py::handle item = ids[i];
    if (!Array<std::int32_t>::check_(item)) throw std::invalid_argument("ids must be contiguous int32 arrays");
    held.push_back(py::reinterpret_borrow<Array<std::int32_t>>(item));
    if (held.back().ndim() != 1) throw std::invalid_argument("ids must have one dimension");
    const std::int64_t length = held.back().size(), ranges = masked_per_segment.at(i);
    if (ranges < 0 || next_masked + static_cast<std::size_t>(ranges) > segments.masked.size()) {
      throw std::invalid_argument("masked_per_segment does not add up to the ranges");
    }
    segments.views.push_back({segments.pieces.size(), 1, length, loss_from.at(i), next_masked,
                              static_cast<std::size_t>(ranges), modality.at(i)});
    segments.pieces.push_back({held.back().data(), length, 0, IdType::kInt32, false});
    next_masked += static_cast<std::size_t>(ranges);
  }
  if (next_masked != segments.masked.size()) {
    throw std::invalid_argument("masked_per_segment does not add up to the ranges");
  }
  const BatchBuffers buffers = out.checked(segments_per_pack.size() * sequence_length);
  BatchIndex index;
  {
    py::gil_scoped_release release;
    index = assemble_packs(segments, {sequence_length, image_token_id, pad_id}, buffers);
  }
  return py::make_tuple(to_numpy(std::move(index.cu_seqlens)), index.max_seqlen, index.image_rows);
}

// A source with the Python objects that keep its memory alive.
struct HeldSource {
  IndexedSource view;
  std::vector<py::object> owners;
};

PictureRows picture_rows(std::int64_t most, std::int64_t patch, std::int64_t fold) {
  if (most < 1) throw std::invalid_argument("image_tokens must be at least 1");
  if (patch < 0 || fold < 1) throw std::invalid_argument("patch must not be negative, and fold at least 1");
  return {most, patch, fold};
}

HeldSource hold_source(const py::buffer& data, int type, const py::array& lengths, const py::array& pointers,
                       const py::array& documents, const py::array& modes, std::int64_t image_tokens,
                       const std::optional<Array<std::int32_t>>& facts, std::int64_t patch, std::int64_t fold) {
  const auto bytes_of = [](const py::array& array, const char* name, py::ssize_t itemsize) {
    if (array.ndim() != 1 || array.itemsize() != itemsize || (array.size() > 1 && array.strides(0) != itemsize)) {
      throw std::invalid_argument(std::string(name) + " must be contiguous, of " + std::to_string(itemsize) + " bytes each");
    }
    return static_cast<const unsigned char*>(array.data());
  };
  if (documents.size() < 1 || pointers.size() != lengths.size() || modes.size() != lengths.size()) {
    throw std::invalid_argument("lengths, pointers and modes must have one element a sequence, documents at least one");
  }
  if (facts && (facts->ndim() != 2 || facts->shape(0) != lengths.size() || facts->shape(1) != 2)) {
    throw std::invalid_argument("facts must be [sequences, 2]");
  }
  if (id_size(static_cast<IdType>(type)) == 0) throw std::invalid_argument("token ids must be integers");
  const PictureRows picture = picture_rows(image_tokens, patch, fold);
  if (patch > 0 && !facts) throw std::invalid_argument("pictures of any shape need facts, which say their sizes");
  const py::buffer_info info = data.request();
  return {{static_cast<const unsigned char*>(info.ptr), info.size * info.itemsize, static_cast<IdType>(type),
           bytes_of(lengths, "lengths", 4), bytes_of(pointers, "pointers", 8), bytes_of(documents, "documents", 8),
           bytes_of(modes, "modes", 1), facts ? reinterpret_cast<const unsigned char*>(facts->data()) : nullptr,
           lengths.size(), documents.size() - 1, picture},
          {py::memoryview(data), lengths, pointers, documents, modes, facts ? py::object(*facts) : py::none()}};
}

py::tuple bound_assemble_spans(const std::vector<const HeldSource*>& held, const Array<std::int64_t>& spans,
                               const Array<std::int64_t>& spans_per_pack, std::int64_t sequence_length,
                               std::int64_t image_token_id, std::int64_t pad_id, std::int64_t eod_id,
                               std::int64_t vocab_size, Outputs& out) {
  if (spans.ndim() != 2 || spans.shape(1) != 4) throw std::invalid_argument("spans must be [n, 4]");
  Segments segments;
  segments.per_pack = to_vector(spans_per_pack, "spans_per_pack");
  std::vector<IndexedSource> sources;
  for (const HeldSource* source : held) sources.push_back(source->view);
  const BatchBuffers buffers = out.checked(spans_per_pack.size() * sequence_length);
  const std::int64_t* rows = spans.data();
  const auto count = static_cast<std::size_t>(spans.shape(0));
  std::vector<PicturePlace> pictures;
  BatchIndex index;
  {
    py::gil_scoped_release release;
    segments.views.reserve(count);
    segments.pieces.reserve(3 * count);
    for (std::size_t i = 0; i < count; ++i) {
      const std::int64_t* row = rows + 4 * i;
      append_span(sources, {row[0], row[1], row[2], row[3]}, image_token_id, eod_id, segments, pictures);
    }
    index = assemble_packs(segments, {sequence_length, image_token_id, pad_id, vocab_size}, buffers);
  }
  std::vector<std::int64_t> places;
  places.reserve(2 * pictures.size());
  for (const auto& [source, sequence] : pictures) places.insert(places.end(), {source, sequence});
  return py::make_tuple(to_numpy(std::move(index.cu_seqlens)), index.max_seqlen, index.image_rows,
                        to_numpy(std::move(places)), index.fault.segment, index.fault.id);
}

py::tuple bound_document_lengths(const HeldSource& held, const Array<std::int64_t>& documents) {
  if (documents.ndim() != 1) throw std::invalid_argument("documents must have one dimension");
  const auto count = static_cast<std::size_t>(documents.size());
  const std::int64_t* asked = documents.data();
  std::vector<std::int64_t> positions(count), pictures(count), ends(count), rows(count), squares(count);
  {
    py::gil_scoped_release release;
    constexpr std::size_t kAhead = 16;
    for (std::size_t i = 0; i < count; ++i) {
      if (i + 2 * kAhead < count) prefetch_borders(held.view, asked[i + 2 * kAhead]);
      if (i + kAhead < count) prefetch_sequences(held.view, asked[i + kAhead]);
      const DocumentLength found = document_length(held.view, asked[i]);
      positions[i] = found.positions;
      pictures[i] = found.pictures;
      ends[i] = found.picture_end;
      rows[i] = found.rows;
      squares[i] = found.squares;
    }
  }
  return py::make_tuple(to_numpy(std::move(positions)), to_numpy(std::move(pictures)), to_numpy(std::move(ends)),
                        to_numpy(std::move(rows)), to_numpy(std::move(squares)));
}

py::array_t<std::int64_t> bound_native_rows(const Array<std::int32_t>& sizes, std::int64_t most, std::int64_t patch,
                                      std::int64_t fold) {
  if (sizes.ndim() != 2 || sizes.shape(1) != 2) throw std::invalid_argument("sizes must be [n, 2]");
  const PictureRows picture = picture_rows(most, patch, fold);
  if (patch == 0) throw std::invalid_argument("patch must be at least 1");
  const auto count = static_cast<std::size_t>(sizes.shape(0));
  const std::int32_t* sides = sizes.data();
  std::vector<std::int64_t> rows(count);
  {
    py::gil_scoped_release release;
    for (std::size_t i = 0; i < count; ++i) {
      const auto [down, across] = native_groups(sides[2 * i], sides[2 * i + 1], picture);
      rows[i] = down * across;
    }
  }
  return to_numpy(std::move(rows));
}

}  // namespace

void bind_assemble(py::module_& module) {
  py::class_<Outputs>(module, "Outputs", "The arrays that a batch is written into, packs * sequence_length elements each.")
      .def(py::init<Array<std::int64_t>, Array<std::int64_t>, Array<float>, Array<std::int64_t>, Array<std::uint8_t>,
                    Array<std::uint8_t>, Array<std::int32_t>>(),
           py::arg("tokens").noconvert(), py::arg("labels").noconvert(), py::arg("loss_mask").noconvert(),
           py::arg("position_ids").noconvert(), py::arg("label_modality").noconvert(),
           py::arg("token_modality").noconvert(), py::arg("row_index").noconvert());
  py::class_<HeldSource>(module, "IndexedSource", "An indexed dataset as its files are mapped.")
      .def(py::init(&hold_source), py::arg("data"), py::arg("type"), py::arg("lengths"), py::arg("pointers"),
           py::arg("documents"), py::arg("modes"), py::arg("image_tokens"), py::arg("facts").noconvert() = py::none(),
           py::arg("patch") = 0, py::arg("fold") = 1);
  module.def("native_rows", &bound_native_rows, py::arg("sizes").noconvert(), py::arg("most"), py::arg("patch"),
             py::arg("fold"), "Rows of pictures of these heights and widths that keep their aspect.");
  module.def("document_lengths", &bound_document_lengths, py::arg("source"), py::arg("documents").noconvert(),
             "Return (positions, pictures, ids up to the last picture, rows, sums of squared rows) of documents.");
  module.def("assemble_packs", &bound_assemble_packs, py::arg("ids").noconvert(), py::arg("modality").noconvert(),
             py::arg("loss_from").noconvert(), py::arg("masked_per_segment").noconvert(), py::arg("masked").noconvert(),
             py::arg("segments_per_pack").noconvert(), py::arg("sequence_length"), py::arg("image_token_id"),
             py::arg("pad_id"), py::arg("out"), "Write one batch; return (cu_seqlens, max_seqlen, image_rows).");
  module.def("assemble_spans", &bound_assemble_spans, py::arg("sources"), py::arg("spans").noconvert(),
             py::arg("spans_per_pack").noconvert(), py::arg("sequence_length"), py::arg("image_token_id"),
             py::arg("pad_id"), py::arg("eod_id"), py::arg("vocab_size"), py::arg("out"),
             "Write one batch; return (cu_seqlens, max_seqlen, image_rows, pictures, span at fault or -1, its id).");
}

}  // namespace megatron_vlm
