#include "patchify.h"

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "half.h"
#include "patchify_avx2.h"
#include "streaming.h"
#include "threads.h"

namespace megatron_vlm {
namespace {

constexpr std::int64_t kBytesPerThread = 1 << 20;
constexpr std::int64_t kLaidBytes = 24 << 10;

struct Picture {
  std::int64_t offset, height, width, first;
  std::int64_t rows, columns;  // of patches
};

std::vector<Picture> checked_pictures(const PatchifySpec& spec) {
  if (spec.patch_size < 1 || spec.group < 1) throw std::invalid_argument("patch_size and group must be at least 1");
  std::vector<Picture> pictures;
  pictures.reserve(static_cast<std::size_t>(spec.picture_count));
  std::int64_t next = 0;
  for (std::int64_t i = 0; i < spec.picture_count; ++i) {
    const std::int64_t* row = spec.pictures + 4 * i;
    Picture picture{row[0], row[1], row[2], row[3], row[1] / spec.patch_size, row[2] / spec.patch_size};
    const std::string name = "picture " + std::to_string(i) + ": ";
    // a side of 2^20 keeps every product below inside 64 bits
    if (picture.height < 0 || picture.width < 0 || picture.height > (1 << 20) || picture.width > (1 << 20)) {
      throw std::invalid_argument(name + std::to_string(picture.height) + " x " + std::to_string(picture.width) +
                                  " is no size");
    }
    if (picture.offset < 0 || picture.offset > spec.pixel_bytes - 3 * picture.height * picture.width) {
      throw std::invalid_argument(name + "its pixels end outside the " + std::to_string(spec.pixel_bytes) + " bytes given");
    }
    if (picture.rows % spec.group != 0 || picture.columns % spec.group != 0) {
      throw std::invalid_argument(name + "its " + std::to_string(picture.rows) + " x " + std::to_string(picture.columns) +
                                  " patches do not divide into groups of " + std::to_string(spec.group) + " x " +
                                  std::to_string(spec.group));
    }
    if (picture.first != next) {
      throw std::invalid_argument(name + "its first patch is " + std::to_string(picture.first) + ", but the pictures before "
                                  "it have " + std::to_string(next));
    }
    next += picture.rows * picture.columns;
    pictures.push_back(picture);
  }
  if (next != spec.patches) {
    throw std::invalid_argument("the pictures have " + std::to_string(next) + " patches, not " +
                                std::to_string(spec.patches));
  }
  return pictures;
}

// What each of the 256 values of a channel becomes: exact for every dtype, on any processor.
template <typename T>
struct Tables {
  T of[3][256];

  explicit Tables(const PatchifySpec& spec) {
    for (int channel = 0; channel < 3; ++channel) {
      for (int value = 0; value < 256; ++value) {
        const float normalised = (static_cast<float>(value) - spec.mean_255[channel]) / spec.std_255[channel];
        of[channel][value] = Wide<T>::narrow(normalised);
      }
    }
  }
};

// Lays one patch, channel first.
template <typename T>
class PatchLayer {
 public:
  explicit PatchLayer(const PatchifySpec& spec)
      : tables_(spec), size_(spec.patch_size), end_(spec.pixels + spec.pixel_bytes) {
#if MEGATRON_VLM_HAS_AVX2_PATCHES
    if constexpr (!std::is_same_v<T, double>) {
      if (!avx2::available()) return;
      for (int i = 0; i < 3; ++i) {
        channels_[i] = {spec.mean_255[i], spec.std_255[i], 1.0f / spec.std_255[i], -spec.mean_255[i] / spec.std_255[i]};
      }
      if (agrees<avx2::Exact>()) way_ = &avx2::lay_patch<avx2::Exact, T>;
      if constexpr (std::is_same_v<T, BFloat16>) {
        if (agrees<avx2::Short>()) way_ = &avx2::lay_patch<avx2::Short, T>;
      }
    }
#endif
  }

  void operator()(T* patch, const std::uint8_t* corner, std::int64_t stride) const {
#if MEGATRON_VLM_HAS_AVX2_PATCHES
    if (way_ != nullptr) return way_(patch, corner, stride, size_, channels_, end_);
#endif
    T *red = patch, *green = red + size_ * size_, *blue = green + size_ * size_;
    for (std::int64_t y = 0; y < size_; ++y, corner += stride) {
      const std::uint8_t* pixel = corner;
      for (std::int64_t x = 0; x < size_; ++x, pixel += 3) {
        *red++ = tables_.of[0][pixel[0]];
        *green++ = tables_.of[1][pixel[1]];
        *blue++ = tables_.of[2][pixel[2]];
      }
    }
  }

 private:
  Tables<T> tables_;
  std::int64_t size_;
  const std::uint8_t* end_;
#if MEGATRON_VLM_HAS_AVX2_PATCHES
  template <typename Way>
  bool agrees() const {
    return avx2::agrees<Way, T>(channels_[0], tables_.of[0]) && avx2::agrees<Way, T>(channels_[1], tables_.of[1]) &&
           avx2::agrees<Way, T>(channels_[2], tables_.of[2]);
  }

  avx2::Channel channels_[3] = {};
  void (*way_)(T*, const std::uint8_t*, std::int64_t, std::int64_t, const avx2::Channel (&)[3],
               const std::uint8_t*) = nullptr;
#endif
};

template <typename T>
void patch_range(T* out, std::int32_t* coordinates, const PatchifySpec& spec, const std::vector<Picture>& pictures,
                 const PatchLayer<T>& lay_patch, std::int64_t begin, std::int64_t end, bool streaming) {
  const std::int64_t size = spec.patch_size, length = 3 * size * size, group = spec.group, in_group = group * group;
  // Patches are laid in the first-level cache and streamed some at a time: read back at once, they would wait for stores
  // that are still under way.
  const std::int64_t most = std::max<std::int64_t>(kLaidBytes / (length * static_cast<std::int64_t>(sizeof(T))), 1);
  std::vector<T> laid(static_cast<std::size_t>(streaming ? most * length : 0));
  std::int64_t waiting = 0;
  // the last picture that begins at or before `begin`
  auto picture = std::upper_bound(pictures.begin(), pictures.end(), begin,
                                  [](std::int64_t patch, const Picture& p) { return patch < p.first; }) - 1;
  for (std::int64_t patch = begin; patch < end; ++patch) {
    while (patch >= picture->first + picture->rows * picture->columns) ++picture;
    const std::int64_t inside = patch - picture->first, block = inside / in_group, rest = inside % in_group;
    const std::int64_t blocks = picture->columns / group;
    const std::int64_t row = block / blocks * group + rest / group;
    const std::int64_t column = block % blocks * group + rest % group;
    const std::int64_t stride = 3 * picture->width;
    const std::uint8_t* corner = spec.pixels + picture->offset + row * size * stride + 3 * column * size;
    lay_patch(streaming ? laid.data() + waiting * length : out + patch * length, corner, stride);
    if (streaming && (++waiting == most || patch + 1 == end)) {
      stream_row(out + (patch + 1 - waiting) * length, laid.data(), static_cast<std::size_t>(waiting * length) * sizeof(T));
      waiting = 0;
    }
    coordinates[2 * patch] = static_cast<std::int32_t>(row);
    coordinates[2 * patch + 1] = static_cast<std::int32_t>(column);
  }
}

template <typename T>
void patchify_as(void* out, std::int32_t* coordinates, const PatchifySpec& spec, int threads) {
  const std::vector<Picture> pictures = checked_pictures(spec);
  const PatchLayer<T> lay_patch(spec);
  const std::int64_t bytes = spec.patches * 3 * spec.patch_size * spec.patch_size * static_cast<std::int64_t>(sizeof(T));
  const int parts = useful_threads(threads, bytes, kBytesPerThread);
  const bool streaming = bytes >= kStreamingBytes;
  in_parallel(parts, [&](int part) {
    const std::int64_t begin = spec.patches * part / parts, end = spec.patches * (part + 1) / parts;
    if (begin == end) return;
    patch_range<T>(static_cast<T*>(out), coordinates, spec, pictures, lay_patch, begin, end, streaming);
    if (streaming) finish_streaming();
  });
}

}  // namespace

void patchify(void* out, std::int32_t* coordinates, Dtype dtype, const PatchifySpec& spec, int threads) {
  switch (dtype) {
    case Dtype::kFloat32: return patchify_as<float>(out, coordinates, spec, threads);
    case Dtype::kBFloat16: return patchify_as<BFloat16>(out, coordinates, spec, threads);
    case Dtype::kFloat16: return patchify_as<Half>(out, coordinates, spec, threads);
    case Dtype::kFloat64: return patchify_as<double>(out, coordinates, spec, threads);
  }
}

}  // namespace megatron_vlm
