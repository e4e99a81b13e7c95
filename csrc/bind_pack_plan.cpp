#include "bindings.h"
#include "pack_plan.h"

namespace megatron_vlm {
namespace {

using Integers = Array<std::int64_t>;

py::ssize_t length_of(const Integers& array) {
  if (array.ndim() != 1) throw std::invalid_argument("every array must have one dimension");
  return array.size();
}

template <typename T>
const T* with_length(const Array<T>& array, py::ssize_t length) {
  if (array.ndim() != 1 || array.size() != length) throw std::invalid_argument("arrays must have equal lengths");
  return array.data();
}

py::tuple to_tuple(Placement&& placement) {
  return py::make_tuple(to_numpy(std::move(placement.pack)), placement.packs);
}

py::tuple bound_best_fit(const Integers& lengths, std::int64_t capacity) {
  const auto count = length_of(lengths);
  Placement placement;
  {
    py::gil_scoped_release release;
    placement = pack_best_fit(lengths.data(), count, capacity);
  }
  return to_tuple(std::move(placement));
}

py::tuple bound_within_budgets(const Integers& lengths, const Integers& patches, const Integers& images,
                               const Integers& order, std::int64_t capacity, std::int64_t patch_capacity,
                               std::int64_t image_capacity) {
  const auto count = length_of(lengths);
  const std::int64_t* tokens = lengths.data();
  const std::int64_t* of_patches = with_length(patches, count);
  const std::int64_t* of_images = with_length(images, count);
  const std::int64_t* in_order = with_length(order, count);
  Placement placement;
  {
    py::gil_scoped_release release;
    std::vector<Budgets> items(count);
    for (py::ssize_t i = 0; i < count; ++i) items[i] = {tokens[i], of_patches[i], of_images[i]};
    placement = pack_within_budgets(items, in_order, {capacity, patch_capacity, image_capacity});
  }
  return to_tuple(std::move(placement));
}

py::tuple bound_group(const Integers& pack, std::int64_t packs) {
  const auto count = length_of(pack);
  Grouping grouping;
  {
    py::gil_scoped_release release;
    grouping = group_by_pack(pack.data(), count, packs);
  }
  return py::make_tuple(to_numpy(std::move(grouping.items)), to_numpy(std::move(grouping.starts)));
}

py::tuple bound_order_in_packs(const Integers& pack, const Integers& document, const Integers& start, std::int64_t packs) {
  const auto count = length_of(pack);
  const std::int64_t* documents = with_length(document, count);
  const std::int64_t* starts = with_length(start, count);
  Grouping grouping;
  {
    py::gil_scoped_release release;
    grouping = order_in_packs(pack.data(), documents, starts, count, packs);
  }
  return py::make_tuple(to_numpy(std::move(grouping.items)), to_numpy(std::move(grouping.starts)));
}

py::tuple bound_fill(const Integers& document, const Integers& start, const Integers& length,
                     const Array<bool>& splittable, const Integers& pack, std::int64_t packs, std::int64_t capacity,
                     std::int64_t min_piece) {
  const auto count = length_of(document);
  const std::int64_t* starts = with_length(start, count);
  const std::int64_t* lengths = with_length(length, count);
  const bool* may_split = with_length(splittable, count);
  const std::int64_t* in_pack = with_length(pack, count);
  std::vector<std::int64_t> documents, new_starts, new_lengths;
  FilledPacks filled;
  {
    py::gil_scoped_release release;
    std::vector<Piece> pieces(count);
    for (py::ssize_t i = 0; i < count; ++i) pieces[i] = {document.data()[i], starts[i], lengths[i], may_split[i]};
    filled = fill_pack_holes(pieces, {{in_pack, in_pack + count}, packs}, capacity, min_piece);
    for (auto* column : {&documents, &new_starts, &new_lengths}) column->reserve(filled.pieces.size());
    for (const Piece& piece : filled.pieces) {
      documents.push_back(piece.document);
      new_starts.push_back(piece.start);
      new_lengths.push_back(piece.length);
    }
  }
  return py::make_tuple(to_numpy(std::move(documents)), to_numpy(std::move(new_starts)),
                        to_numpy(std::move(new_lengths)), to_numpy(std::move(filled.placement.pack)),
                        filled.placement.packs);
}

py::array_t<std::int64_t> bound_balance(const Array<double>& costs, std::int64_t ranks, std::int64_t micro_batches,
                                        std::int64_t window) {
  if (costs.ndim() != 1) throw std::invalid_argument("costs must have one dimension");
  const double* first = costs.data();
  std::vector<std::int64_t> order;
  {
    py::gil_scoped_release release;
    order = balance_packs({first, first + costs.size()}, ranks, micro_batches, window);
  }
  return to_numpy(std::move(order));
}

py::tuple bound_order(const Integers& amounts, const Integers& bases, const Integers& shares, const Integers& behind,
                      const Array<double>& scale, std::int64_t candidates, double close_enough) {
  const auto sources = length_of(behind);
  const auto elements = length_of(amounts);
  if (sources < 1 || elements % sources != 0) throw std::invalid_argument("amounts must fill whole packs");
  const MixtureAccount account{amounts.data(), with_length(bases, elements), with_length(shares, elements),
                               with_length(scale, sources)};
  std::vector<std::int64_t> owed(behind.data(), behind.data() + sources);
  std::vector<std::int64_t> order;
  {
    py::gil_scoped_release release;
    order = order_packs(account, elements / sources, owed, candidates, close_enough);
  }
  return py::make_tuple(to_numpy(std::move(order)), to_numpy(std::move(owed)));
}

}  // namespace

void bind_pack_plan(py::module_& module) {
  module.def("pack_best_fit", &bound_best_fit, py::arg("lengths").noconvert(), py::arg("capacity"),
             "Best-fit decreasing; return (pack of each item, number of packs).");
  module.def("pack_within_budgets", &bound_within_budgets, py::arg("lengths").noconvert(),
             py::arg("patches").noconvert(), py::arg("images").noconvert(), py::arg("order").noconvert(),
             py::arg("capacity"), py::arg("patch_capacity"), py::arg("image_capacity"),
             "Best fit in the given order within three budgets; return (pack of each item, number of packs).");
  module.def("group_by_pack", &bound_group, py::arg("pack").noconvert(), py::arg("packs"),
             "Return (items by pack, where each pack starts and the end).");
  module.def("order_in_packs", &bound_order_in_packs, py::arg("pack").noconvert(), py::arg("document").noconvert(),
             py::arg("start").noconvert(), py::arg("packs"),
             "Return (pieces by pack, document and start, where each pack starts and the end).");
  module.def("fill_pack_holes", &bound_fill, py::arg("document").noconvert(), py::arg("start").noconvert(),
             py::arg("length").noconvert(), py::arg("splittable").noconvert(), py::arg("pack").noconvert(),
             py::arg("packs"), py::arg("capacity"), py::arg("min_piece"),
             "Cut and exchange pieces to fill packs; return (document, start, length, pack, number of packs).");
  module.def("balance_packs", &bound_balance, py::arg("costs").noconvert(), py::arg("ranks"),
             py::arg("micro_batches"), py::arg("window"), "Return packs by step, rank and micro-batch, flat.");
  module.def("order_packs", &bound_order, py::arg("amounts").noconvert(), py::arg("bases").noconvert(),
             py::arg("shares").noconvert(), py::arg("behind").noconvert(), py::arg("scale").noconvert(),
             py::arg("candidates"), py::arg("close_enough"),
             "Return (packs in the order that keeps every source near its share, what each is behind after them).");
}

}  // namespace megatron_vlm
