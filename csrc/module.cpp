// megatron_vlm._native: the Python face of csrc.  Only conversions live in the bindings; an operator's work is in its own
// file.
#include "bindings.h"

namespace {

// Raised by one whenever a function's arguments or meaning change; megatron_vlm/ops/native.py holds the number it
// expects, so that an extension built from older sources is told from a fitting one.
constexpr int kInterface = 8;

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Native operators of megatron_vlm. Call them through megatron_vlm.ops, which checks what it passes.";
  module.attr("INTERFACE") = kInterface;
  megatron_vlm::bind_assemble(module);
  megatron_vlm::bind_fuse(module);
  megatron_vlm::bind_patchify(module);
  megatron_vlm::bind_pack_plan(module);
  megatron_vlm::bind_resize(module);
  megatron_vlm::bind_window_rows(module);
}
