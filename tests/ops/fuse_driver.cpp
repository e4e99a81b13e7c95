// Runs the operators of fuse.h and patchify.h on random batches whose buffers are exactly as long as they must be, on some
// that must be refused, and on ones large enough for threads and streamed stores.  Prints the number of each.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "fuse.h"
#include "patchify.h"

namespace {

using namespace megatron_vlm;
using Bytes = std::unique_ptr<unsigned char[]>;

std::mt19937 generator(1);
std::int64_t below(std::int64_t bound) { return static_cast<std::int64_t>(generator() % static_cast<unsigned>(bound)); }

Bytes bytes(std::int64_t size, int value = 0) {
  Bytes made(new unsigned char[static_cast<std::size_t>(size)]);
  std::memset(made.get(), value, static_cast<std::size_t>(size));
  return made;
}

// False: refused.  A result that is wrong ends the driver.
bool run_slice(std::int64_t batch, std::int64_t sequence, std::int64_t hidden, std::int64_t vocab, std::int64_t rows,
               bool faulty, int threads) {
  const auto dtype = static_cast<Dtype>(below(4));
  const auto size = static_cast<std::int64_t>(size_of(dtype));
  std::unique_ptr<std::int64_t[]> tokens(new std::int64_t[static_cast<std::size_t>(batch * sequence)]);
  std::unique_ptr<std::int32_t[]> row_index(new std::int32_t[static_cast<std::size_t>(batch * sequence)]);
  std::int64_t next = 0;
  for (std::int64_t i = 0; i < batch * sequence; ++i) {
    tokens[i] = below(vocab);
    row_index[i] = next < rows && below(3) == 0 ? static_cast<std::int32_t>(next++) : -1;
    if (row_index[i] >= 0) tokens[i] = -5;
  }
  if (faulty && batch * sequence > 0) {
    const auto at = below(batch * sequence);
    if (below(2) == 0) {
      row_index[at] = static_cast<std::int32_t>(below(3) == 0 ? -2 : rows);
    } else {
      tokens[at] = vocab + below(2) * 1000000;
      row_index[at] = -1;
    }
  }
  const std::int64_t first = below(sequence), count = 1 + below(sequence - first);
  const std::int64_t start = below(vocab), shard = 1 + below(vocab - start);
  const FuseSlice slice{tokens.get(), row_index.get(), batch, sequence, first, count, start, shard, vocab, rows};
  try {
    check_slice(slice);
  } catch (const std::out_of_range&) {
    return false;
  }
  const Bytes weight = bytes(shard * hidden * size, 1), image_rows = bytes(rows * hidden * size, 1);
  const std::int64_t length = count * batch * hidden * size;
  const Bytes out = bytes(length, 77);
  const bool here = below(2) == 0;
  fuse_forward(out.get(), weight.get(), image_rows.get(), hidden, here, dtype, slice, threads);
  for (std::int64_t i = 0; i < length; ++i) {
    if (out[i] > 1) std::exit(1);  // every byte is a one of a row, or a zero
  }
  const Bytes of_rows = bytes(rows * hidden * size, 77), of_weight = bytes(shard * hidden * size, 77);
  fuse_backward_rows(of_rows.get(), out.get(), hidden, dtype, slice, threads);
  fuse_backward_weight(of_weight.get(), out.get(), hidden, dtype, slice, threads);
  return true;
}

void run_pictures(std::int64_t most, std::int64_t largest, int threads) {
  PatchifySpec spec{};
  spec.patch_size = 1 + below(18);
  spec.group = 1 + below(3);
  std::vector<std::int64_t> table;
  const std::int64_t step = spec.patch_size * spec.group;
  for (std::int64_t i = below(most + 1); i > 0; --i) {
    const std::int64_t height = step * below(largest) + below(spec.patch_size);
    const std::int64_t width = step * below(largest) + below(spec.patch_size);
    table.insert(table.end(), {spec.pixel_bytes, height, width, spec.patches});
    spec.pixel_bytes += 3 * height * width;
    spec.patches += (height / spec.patch_size) * (width / spec.patch_size);
  }
  const Bytes pixels = bytes(spec.pixel_bytes, 200);
  std::unique_ptr<std::int64_t[]> pictures(new std::int64_t[table.size()]);
  std::copy(table.begin(), table.end(), pictures.get());
  spec.pixels = pixels.get();
  spec.pictures = pictures.get();
  spec.picture_count = static_cast<std::int64_t>(table.size()) / 4;
  for (int channel = 0; channel < 3; ++channel) spec.mean_255[channel] = 100.0f, spec.std_255[channel] = 70.0f;
  const auto dtype = static_cast<Dtype>(below(4));
  const Bytes out = bytes(spec.patches * 3 * spec.patch_size * spec.patch_size * static_cast<std::int64_t>(size_of(dtype)));
  std::unique_ptr<std::int32_t[]> coordinates(new std::int32_t[static_cast<std::size_t>(2 * spec.patches)]);
  patchify(out.get(), coordinates.get(), dtype, spec, threads);
}

}  // namespace

int main() {
  int slices = 0, refused = 0, pictures = 0;
  for (int round = 0; round < 600; ++round) {
    const bool good = run_slice(1 + below(3), 1 + below(20), 1 + below(40), 1 + below(20), below(12), round % 3 == 0, 3);
    good ? ++slices : ++refused;
    run_pictures(3, 4, 3);
    ++pictures;
  }
  for (int round = 0; round < 3; ++round) {
    run_slice(4, 900, 1031, 1500, 700, false, 3);
    run_pictures(12, 12, 3);
  }
  std::printf("%d %d %d\n", slices, refused, pictures);
  return 0;
}
