// Bicubic scaling of bytes with antialiasing, to the bits of Pillow's: the same filter (a = -0.5), the same fixed-point
// weights.  Always across first, rounded to bytes, then down; Pillow's own order depends on its version and on the sizes.
// Knows nothing of Python.
#pragma once

#include <cstdint>

namespace megatron_vlm {

// `channels` (1 or 3) bytes a pixel, rows one after another; `out` has `out_stride` bytes from row to row.
// The box is (left, upper, right, lower) in pixels of the input and lies inside of it.
struct Resize {
  const std::uint8_t* in;
  std::int64_t height, width, channels;
  float box[4];
  std::uint8_t* out;
  std::int64_t out_height, out_width, out_stride;
};

void resize_bicubic(const Resize& job);

}  // namespace megatron_vlm
