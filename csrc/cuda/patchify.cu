// Launching the kernel of patchify.cuh: sizes are checked, the widest unit that fits is chosen, and nothing waits.
#include "patchify.cuh"

#include "kernels.h"
#include "portable.h"

namespace mvlm {
namespace {

// Enough for the largest GPU; a block then writes patches in turn, and computes its table of results only once.
constexpr int64_t kMostBlocks = 4096;
// kPatchesAtOnce rows of 3 * 2048^2 items stay below 2^31, which is how far 32-bit numbers and Divider go.
constexpr int kLargestPatch = 2048;

template <typename Bits, int kBytes>
cudaError_t write_in_units(void* out, int32_t* coordinates, const Pictures& all, const Normalisation& normalisation,
                           int dtype, int32_t* fault, cudaStream_t stream) {
  const auto side = static_cast<uint32_t>(all.patch_size);
  const uint32_t units = 3 * side * side / (kBytes / static_cast<uint32_t>(sizeof(Bits)));
  const Row row{Divider(units), Divider(side * side), Divider(side)};
  // The table of pictures is looked through even where there is no patch.
  const int64_t blocks = ceil_div(all.patches, kPatchesAtOnce) + (all.patches == 0);
  const dim3 grid(static_cast<unsigned>(at_most(blocks, kMostBlocks)));
  return launch_with_barriers(write_patches<Bits, kBytes>, grid, dim3(kPatchifyThreads), stream,
                              static_cast<Unit<kBytes>*>(out), coordinates, all, row, normalisation, dtype, fault);
}

}  // namespace
}  // namespace mvlm

extern "C" int mvlm_patchify(void* out, int32_t* coordinates, const uint8_t* pixels, int64_t pixel_bytes,
                             const int64_t* pictures, int64_t picture_count, int64_t patches, int patch_size, int group,
                             const float* mean_255, const float* std_255, int dtype, int32_t* fault, void* stream) {
  using namespace mvlm;
  const int size = size_of(dtype);
  if (size == 0 || pixel_bytes < 0 || picture_count < 0 || patches < 0 || patch_size < 1 ||
      patch_size > kLargestPatch || group < 1) {
    return cudaErrorInvalidValue;
  }
  if (picture_count == 0 && patches == 0) return cudaSuccess;
  const Pictures all{pixels, pictures, pixel_bytes, picture_count, patches, patch_size, group};
  const Normalisation normalisation{{mean_255[0], mean_255[1], mean_255[2]}, {std_255[0], std_255[1], std_255[2]}};
  const int64_t row_bytes = int64_t{3} * patch_size * patch_size * size;
  const auto write = [&](auto in_units) {
    return in_units(out, coordinates, all, normalisation, dtype, fault, static_cast<cudaStream_t>(stream));
  };
  // Rows of an even patch are a multiple of 8 bytes in every type, and of 16 in the wider ones; those of an odd one are of
  // no unit, and are written item by item.
  const bool in_16 = moves_in(16, row_bytes, out), in_8 = moves_in(8, row_bytes, out);
  switch (size) {
    case 2:
      if (in_16) return write(write_in_units<uint16_t, 16>);
      if (in_8) return write(write_in_units<uint16_t, 8>);
      return write(write_in_units<uint16_t, 2>);
    case 4: return in_16 ? write(write_in_units<uint32_t, 16>) : write(write_in_units<uint32_t, 4>);
    default: return in_16 ? write(write_in_units<uint64_t, 16>) : write(write_in_units<uint64_t, 8>);
  }
}
