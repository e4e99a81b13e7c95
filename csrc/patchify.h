// Pictures into normalised patch rows.  The meaning of every argument is in cuda/kernels.h, which does the same on a GPU.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace megatron_vlm {

struct PatchifySpec {
  const std::uint8_t* pixels;    // HWC, three channels, pictures one after another
  std::int64_t pixel_bytes;
  const std::int64_t* pictures;  // [picture_count, 4]: byte offset, height, width, number of the first patch
  std::int64_t picture_count;
  std::int64_t patches;
  std::int64_t patch_size, group;
  float mean_255[3], std_255[3];
};

// out: [patches, 3 * patch_size^2] of dtype; coordinates: [patches, 2].  Throws std::invalid_argument, naming the picture,
// before anything is written, where the table does not fit the pixels and patches or a grid is no multiple of group.
void patchify(void* out, std::int32_t* coordinates, Dtype dtype, const PatchifySpec& spec, int threads);

}  // namespace megatron_vlm
