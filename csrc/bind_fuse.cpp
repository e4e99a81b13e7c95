#include "bindings.h"
#include "fuse.h"

namespace megatron_vlm {
namespace {

using Address = std::uintptr_t;

FuseSlice slice_of(Address tokens, Address row_index, std::int64_t batch, std::int64_t sequence, std::int64_t first,
                   std::int64_t count, std::int64_t vocab_start, std::int64_t vocab_rows, std::int64_t vocab_size,
                   std::int64_t row_count) {
  return {at_address<const std::int64_t>(tokens), at_address<const std::int32_t>(row_index), batch, sequence, first, count,
          vocab_start, vocab_rows, vocab_size, row_count};
}

}  // namespace

void bind_fuse(py::module_& module) {
  // A std::out_of_range becomes an IndexError, a std::invalid_argument a ValueError.
  py::class_<FuseSlice>(module, "FuseSlice",
                        "Addresses of contiguous int64 tokens and int32 row_index, [batch, sequence] each, and the sizes.")
      .def(py::init(&slice_of), py::arg("tokens"), py::arg("row_index"), py::arg("batch"), py::arg("sequence"),
           py::arg("first"), py::arg("count"), py::arg("vocab_start"), py::arg("vocab_rows"), py::arg("vocab_size"),
           py::arg("row_count"));
  module.def("check_slice", &check_slice, py::arg("slice"), py::call_guard<py::gil_scoped_release>(),
             "Raise IndexError where a token or a row index is out of range, or a row is named twice.");
  module.def(
      "fuse_forward",
      [](Address out, Address weight, Address rows, std::int64_t hidden, bool rows_here, int dtype,
         const FuseSlice& slice, int threads) {
        fuse_forward(at_address<void>(out), at_address<const void>(weight), at_address<const void>(rows), hidden,
                     rows_here, static_cast<Dtype>(dtype), slice, threads);
      },
      py::arg("out"), py::arg("weight"), py::arg("rows"), py::arg("hidden"), py::arg("rows_here"), py::arg("dtype"),
      py::arg("slice"), py::arg("threads"), py::call_guard<py::gil_scoped_release>(),
      "Write [count, batch, hidden]; the slice must have been checked.");
  module.def(
      "fuse_backward_rows",
      [](Address of_rows, Address gradient, std::int64_t hidden, int dtype, const FuseSlice& slice, int threads) {
        fuse_backward_rows(at_address<void>(of_rows), at_address<const void>(gradient), hidden,
                           static_cast<Dtype>(dtype), slice, threads);
      },
      py::arg("of_rows"), py::arg("gradient"), py::arg("hidden"), py::arg("dtype"), py::arg("slice"),
      py::arg("threads"), py::call_guard<py::gil_scoped_release>(), "Write the gradient of the image rows.");
  module.def(
      "fuse_backward_weight",
      [](Address of_weight, Address gradient, std::int64_t hidden, int dtype, const FuseSlice& slice, int threads) {
        fuse_backward_weight(at_address<void>(of_weight), at_address<const void>(gradient), hidden,
                             static_cast<Dtype>(dtype), slice, threads);
      },
      py::arg("of_weight"), py::arg("gradient"), py::arg("hidden"), py::arg("dtype"), py::arg("slice"),
      py::arg("threads"), py::call_guard<py::gil_scoped_release>(), "Write the gradient of the embedding shard.");
}

}  // namespace megatron_vlm
