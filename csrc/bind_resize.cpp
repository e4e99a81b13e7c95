#include <algorithm>
#include <array>

#include "bindings.h"
#include "resize.h"

namespace megatron_vlm {

void bind_resize(py::module_& module) {
  module.def(
      "resize_bicubic",
      [](std::uintptr_t out, std::int64_t out_height, std::int64_t out_width, std::int64_t out_stride, std::uintptr_t in,
         std::int64_t height, std::int64_t width, std::int64_t channels, std::array<float, 4> box) {
        Resize job{at_address<const std::uint8_t>(in), height,    width, channels, {},
                   at_address<std::uint8_t>(out),      out_height, out_width, out_stride};
        std::copy(box.begin(), box.end(), job.box);
        const py::gil_scoped_release release;
        resize_bicubic(job);
      },
      py::arg("out"), py::arg("out_height"), py::arg("out_width"), py::arg("out_stride"), py::arg("in"),
      py::arg("height"), py::arg("width"), py::arg("channels"), py::arg("box"), "Write a scaled picture's rows.");
}

}  // namespace megatron_vlm
