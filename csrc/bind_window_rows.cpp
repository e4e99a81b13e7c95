#include "bindings.h"
#include "window_rows.h"

namespace megatron_vlm {
namespace {

using Integers = Array<std::int64_t>;

const std::int64_t* column(const py::tuple& arrays, std::size_t number, py::ssize_t length) {
  const auto array = arrays[number].cast<Integers>();
  if (array.ndim() != 1 || array.size() != length) throw std::invalid_argument("columns must have equal lengths");
  return array.data();  // the tuple keeps it
}

void check_types(const py::tuple& arrays, std::size_t count) {
  if (arrays.size() != count) throw std::invalid_argument("expected " + std::to_string(count) + " arrays");
  for (const auto& array : arrays) {
    if (!Integers::check_(array)) throw std::invalid_argument("arrays must be contiguous, of int64");
  }
}

PackedPieces pieces_of(const py::tuple& arrays) {
  check_types(arrays, 4);
  const auto count = arrays[0].cast<Integers>().size(), starts = arrays[3].cast<Integers>().size();
  if (starts < 1) throw std::invalid_argument("pack_starts has an element at least");
  return {column(arrays, 0, count), column(arrays, 1, count), column(arrays, 2, count), column(arrays, 3, starts),
          count, starts - 1};
}

EntryColumns entries_of(const py::tuple& arrays) {
  check_types(arrays, 7);
  const auto count = arrays[0].cast<Integers>().size();
  return {column(arrays, 0, count), column(arrays, 1, count), column(arrays, 2, count), column(arrays, 3, count),
          column(arrays, 4, count), column(arrays, 5, count), column(arrays, 6, count), count};
}

py::tuple bound_amounts(const py::tuple& pieces, const py::tuple& entries, std::int64_t sources) {
  if (sources < 1) throw std::invalid_argument("there must be a source");
  const PackedPieces packed = pieces_of(pieces);
  const EntryColumns columns = entries_of(entries);
  PackAmounts found;
  {
    py::gil_scoped_release release;
    found = pack_amounts(packed, columns, sources);
  }
  return py::make_tuple(to_numpy(std::move(found.positions)), to_numpy(std::move(found.visual)),
                        to_numpy(std::move(found.documents)));
}

py::tuple bound_rows(const py::tuple& pieces, const py::tuple& entries, const Integers& order) {
  const PackedPieces packed = pieces_of(pieces);
  const EntryColumns columns = entries_of(entries);
  if (order.ndim() != 1 || order.size() != packed.packs) throw std::invalid_argument("order must name every pack once");
  const std::int64_t* in_order = order.data();
  WindowRows rows;
  {
    py::gil_scoped_release release;
    rows = window_rows(packed, columns, in_order);
  }
  return py::make_tuple(to_numpy(std::move(rows.spans)), to_numpy(std::move(rows.visual)), to_numpy(std::move(rows.starts)));
}

}  // namespace

void bind_window_rows(py::module_& module) {
  module.def("pack_amounts", &bound_amounts, py::arg("pieces"), py::arg("entries"), py::arg("sources"),
             "Sums of positions, picture rows and documents, [packs * sources] each.");
  module.def("window_rows", &bound_rows, py::arg("pieces"), py::arg("entries"), py::arg("order").noconvert(),
             "Rows of the packs in their order: spans [n * 5], picture rows [n * 2], and where each pack begins.");
}

}  // namespace megatron_vlm
