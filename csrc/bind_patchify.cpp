#include <algorithm>
#include <array>

#include "bindings.h"
#include "patchify.h"

namespace megatron_vlm {

void bind_patchify(py::module_& module) {
  module.def(
      "patchify",
      [](std::uintptr_t out, std::uintptr_t coordinates, std::uintptr_t pixels, std::int64_t pixel_bytes,
         std::uintptr_t pictures, std::int64_t picture_count, std::int64_t patches, std::int64_t patch_size,
         std::int64_t group, std::array<float, 3> mean_255, std::array<float, 3> std_255, int dtype, int threads) {
        PatchifySpec spec{at_address<const std::uint8_t>(pixels), pixel_bytes, at_address<const std::int64_t>(pictures),
                          picture_count, patches, patch_size, group, {}, {}};
        std::copy(mean_255.begin(), mean_255.end(), spec.mean_255);
        std::copy(std_255.begin(), std_255.end(), spec.std_255);
        const py::gil_scoped_release release;
        patchify(at_address<void>(out), at_address<std::int32_t>(coordinates), static_cast<Dtype>(dtype), spec, threads);
      },
      py::arg("out"), py::arg("coordinates"), py::arg("pixels"), py::arg("pixel_bytes"), py::arg("pictures"),
      py::arg("picture_count"), py::arg("patches"), py::arg("patch_size"), py::arg("group"), py::arg("mean_255"),
      py::arg("std_255"), py::arg("dtype"), py::arg("threads"), "Write patch rows and their coordinates.");
}

}  // namespace megatron_vlm
