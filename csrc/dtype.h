// The dtypes of tensors that operators take, numbered as in cuda/kernels.h.
#pragma once

#include <cstddef>

namespace megatron_vlm {

enum class Dtype : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3 };

inline std::size_t size_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32: return 4;
    case Dtype::kFloat64: return 8;
    default: return 2;
  }
}

}  // namespace megatron_vlm
