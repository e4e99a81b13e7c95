// Pictures into normalised patch rows.  What it computes is said in kernels.h.
//
// A value of a pixel has 256 possible results a channel: a block computes them once, with the two rounded operations of the
// definition, and looks them up from then on.  A thread writes 16 bytes side by side with its neighbours; the bytes that it
// reads are few and lie in the cache, since the three channels of a pixel are read by threads of one block.
#pragma once

#include "numbers.h"
#include "portable.h"

namespace mvlm {

constexpr int kPatchifyThreads = 256;
// Blocks that a multiprocessor holds at least.
constexpr int kPatchifyBlocks = 5;
// Patches that a block finds in the table at once, a thread each, before all of its threads write them.
constexpr int kPatchesAtOnce = 16;
constexpr int kTableEntry = 4;

// Division by a number known at the launch: a multiplication and a shift, right for every n < 2^31 (m is rounded up, and
// what that adds to n / d stays below 1 / d).
struct Divider {
  uint32_t divisor, factor, shift;

  explicit Divider(uint32_t d) : divisor(d), factor(0), shift(31) {
    while ((uint64_t{1} << (shift - 31)) < d) ++shift;
    factor = static_cast<uint32_t>(((uint64_t{1} << shift) + d - 1) / d);
  }

  MVLM_DEVICE uint32_t divide(uint32_t n) const { return static_cast<uint32_t>((uint64_t{n} * factor) >> shift); }
};

struct Normalisation {
  float mean_255[3], std_255[3];
};

struct Pictures {
  const uint8_t* pixels;
  const int64_t* table;
  int64_t pixel_bytes, count, patches;
  int patch_size, group;
};

struct Picture {
  int64_t offset, rows, columns, width, first;
  bool fits;  // its bytes are among the pixels, and its grid is made of whole groups

  MVLM_DEVICE int64_t patches() const { return fits ? rows * columns : 0; }
};

MVLM_DEVICE Picture picture_at(const Pictures& all, int64_t number) {
  const int64_t* entry = all.table + number * kTableEntry;
  const int64_t offset = load(entry), height = load(entry + 1), width = load(entry + 2), first = load(entry + 3);
  const bool inside = offset >= 0 && offset <= all.pixel_bytes && height >= 0 && width >= 0 && first >= 0 &&
                      (width == 0 || height <= (all.pixel_bytes - offset) / 3 / width);
  const int64_t rows = height / all.patch_size, columns = width / all.patch_size;
  return {offset, rows, columns, width, first, inside && rows % all.group == 0 && columns % all.group == 0};
}

// Every picture has to fit, and its patches have to begin where those of the one before it end.
MVLM_DEVICE bool table_holds_at(const Pictures& all, int64_t number) {
  const Picture picture = picture_at(all, number);
  const bool is_last = number + 1 == all.count;
  const int64_t next = is_last ? all.patches : load(all.table + (number + 1) * kTableEntry + 3);
  return picture.fits && picture.first <= all.patches && picture.first + picture.patches() == next &&
         (number > 0 || picture.first == 0);
}

// The last picture whose patches begin at `patch` or before it, -1 where none does.
MVLM_DEVICE int64_t picture_of(const Pictures& all, int64_t patch) {
  int64_t begin = 0, end = all.count;
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (load(all.table + middle * kTableEntry + 3) <= patch) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin - 1;
}

struct Patch {
  const uint8_t* corner;  // its first pixel; null where no picture has this patch
  int64_t row_bytes;      // from a row of the picture to the next
  int32_t row, column;
};

MVLM_DEVICE Patch find_patch(const Pictures& all, int64_t number) {
  const int64_t which = picture_of(all, number);
  if (which < 0) return {nullptr, 0, 0, 0};
  const Picture picture = picture_at(all, which);
  const int64_t in_picture = number - picture.first;
  if (in_picture >= picture.patches()) return {nullptr, 0, 0, 0};
  const int64_t group = all.group, group_patches = group * group;
  const int64_t block = in_picture / group_patches, in_block = in_picture % group_patches;
  const int64_t blocks_in_row = picture.columns / group;
  const int64_t row = block / blocks_in_row * group + in_block / group;
  const int64_t column = block % blocks_in_row * group + in_block % group;
  const int64_t row_bytes = 3 * picture.width;
  return {all.pixels + picture.offset + row * all.patch_size * row_bytes + 3 * column * all.patch_size, row_bytes,
          static_cast<int32_t>(row), static_cast<int32_t>(column)};
}

// The bits of a number of `dtype`, which has as many as Bits.
template <typename Bits>
MVLM_DEVICE Bits encode(float x, int dtype);
template <>
MVLM_DEVICE uint16_t encode<uint16_t>(float x, int dtype) {
  Bfloat16 brain;
  Float16 half;
  narrow(x, brain);
  narrow(x, half);
  return dtype == MVLM_BFLOAT16 ? brain.bits : half.bits;
}
template <>
MVLM_DEVICE uint32_t encode<uint32_t>(float x, int) {
  return bits_as<uint32_t>(x);
}
template <>
MVLM_DEVICE uint64_t encode<uint64_t>(float x, int) {
  return bits_as<uint64_t>(static_cast<double>(x));
}

// Sizes of a row of the output, for dividing by them.
struct Row {
  Divider units, channel, side;  // units of a row, items of a channel, items of a pixel row
};

// x of block and grid only.
template <typename Bits, int kBytes>
MVLM_KERNEL void MVLM_BOUNDS(kPatchifyThreads, kPatchifyBlocks)
    write_patches(Unit<kBytes>* out, int32_t* coordinates, Pictures all, Row row, Normalisation normalisation, int dtype,
                  int32_t* fault) {
  constexpr int kItems = kBytes / static_cast<int>(sizeof(Bits));
  MVLM_SHARED(Bits, results, 3 * 256);
  MVLM_SHARED(Patch, found, kPatchesAtOnce);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);

  const int64_t all_threads = int64_t{gridDim.x} * threads;
  for (int64_t i = int64_t{blockIdx.x} * threads + thread; i < all.count; i += all_threads) {
    if (!table_holds_at(all, i)) set_fault(fault, MVLM_FAULT_PICTURE);
  }
  for (int i = thread; i < 3 * 256; i += threads) {
    const int channel = i / 256;
    const float centred = __fsub_rn(static_cast<float>(i % 256), normalisation.mean_255[channel]);
    results[i] = encode<Bits>(__fdiv_rn(centred, normalisation.std_255[channel]), dtype);
  }

  const int64_t step = int64_t{gridDim.x} * kPatchesAtOnce;
  for (int64_t first = int64_t{blockIdx.x} * kPatchesAtOnce; first < all.patches; first += step) {
    const int64_t left = all.patches - first;
    const int patches = left < kPatchesAtOnce ? static_cast<int>(left) : kPatchesAtOnce;
    for (int i = thread; i < patches; i += threads) {
      const Patch patch = find_patch(all, first + i);
      if (patch.corner == nullptr) set_fault(fault, MVLM_FAULT_PICTURE);
      found[i] = patch;
      store(coordinates + 2 * (first + i), patch.row);
      store(coordinates + 2 * (first + i) + 1, patch.column);
    }
    __syncthreads();  // results and found are whole

    const uint32_t row_units = row.units.divisor;
    for (uint32_t i = thread; i < patches * row_units; i += threads) {
      const uint32_t number = row.units.divide(i);
      const uint32_t item = (i - number * row_units) * kItems;
      uint32_t channel = row.channel.divide(item);
      uint32_t y = row.side.divide(item - channel * row.channel.divisor);
      uint32_t x = item - channel * row.channel.divisor - y * row.side.divisor;
      const Patch patch = found[number];
      Bits items[kItems] = {};
      if (patch.corner != nullptr) {
        MVLM_UNROLL for (int k = 0; k < kItems; ++k) {
          const uint32_t value = load(patch.corner + y * patch.row_bytes + 3 * x + channel);
          items[k] = results[channel * 256 + value];
          if (++x == row.side.divisor) {
            x = 0;
            if (++y == row.side.divisor) {
              y = 0;
              ++channel;
            }
          }
        }
      }
      Unit<kBytes> unit;
      memcpy(&unit, items, kBytes);
      store(out + first * row_units + i, unit);
    }
    __syncthreads();  // found is read no more
  }
}

}  // namespace mvlm
