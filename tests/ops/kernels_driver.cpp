// Calls the emulated CUDA operators with random sizes and hostile contents, in buffers of exactly the size that each needs,
// for the sanitizers to watch.  Prints how many calls had no fault and how many had one.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "kernels.h"

extern "C" void mvlm_emulation_set(unsigned grid_x, unsigned grid_y, unsigned block_x, unsigned block_y, int reversed);

namespace {

std::mt19937_64 engine(1);

std::int64_t pick(std::int64_t least, std::int64_t most) {
  return std::uniform_int_distribution<std::int64_t>(least, most)(engine);
}

bool chance(int percent) { return pick(1, 100) <= percent; }

// A heap block of exactly `count` items, and a valid address where there are none.
template <typename T>
struct Buffer {
  std::unique_ptr<T[]> items;
  explicit Buffer(std::int64_t count) : items(new T[static_cast<std::size_t>(count)]()) {}
  operator T*() { return items.get(); }
};

constexpr int kSize[] = {4, 2, 2, 8};
int without_fault = 0, with_fault = 0;

void expect(int code) {
  if (code == 0) return;
  std::fprintf(stderr, "%s\n", mvlm_error_string(code));
  std::exit(1);
}

void count(std::int32_t fault) { ++(fault ? with_fault : without_fault); }

void choose_shape(bool flat) {
  if (chance(30)) return mvlm_emulation_set(0, 0, 0, 0, chance(50));
  const auto y = [&] { return static_cast<unsigned>(flat ? 1 : pick(1, 4)); };
  mvlm_emulation_set(static_cast<unsigned>(pick(1, 6)), y(), static_cast<unsigned>(pick(1, 70)), y(), chance(50));
}

void fuse() {
  const int dtype = static_cast<int>(pick(0, 3));
  const std::int64_t hidden = chance(50) ? pick(1, 20) * 8 : pick(1, 130), batch = pick(0, 3), sequence = pick(1, 12);
  const std::int64_t first = pick(0, sequence), positions = pick(0, sequence - first), shards = pick(1, 8);
  const std::int64_t vocab_rows = pick(0, 9), vocab_size = shards * vocab_rows, row_count = pick(0, 12);
  const std::int64_t vocab_start = pick(0, shards - 1) * vocab_rows, row_bytes = hidden * kSize[dtype];
  const bool hostile = chance(40) || vocab_rows == 0;

  Buffer<std::int64_t> tokens(batch * sequence);
  Buffer<std::int32_t> row_index(batch * sequence);
  std::int64_t named = 0;
  for (std::int64_t i = 0; i < batch * sequence; ++i) {
    tokens[i] = vocab_size > 0 ? pick(0, vocab_size - 1) : 0;
    row_index[i] = named < row_count && chance(40) ? static_cast<std::int32_t>(named++) : -1;
    if (hostile && chance(20)) tokens[i] = chance(50) ? pick(INT64_MIN, INT64_MAX) : pick(-2, vocab_size + 1);
    if (hostile && chance(20)) {
      row_index[i] = static_cast<std::int32_t>(chance(50) ? pick(INT32_MIN, INT32_MAX) : pick(-3, row_count + 1));
    }
  }
  // unsigned char, new'ed: aligned to 16, as large as said
  Buffer<unsigned char> weight(vocab_rows * row_bytes), rows(row_count * row_bytes), of_weight(vocab_rows * row_bytes);
  Buffer<unsigned char> of_rows(row_count * row_bytes), out(positions * batch * row_bytes);
  Buffer<unsigned char> gradient(positions * batch * row_bytes);
  Buffer<std::int64_t> workspace(row_count);
  Buffer<std::int32_t> fault(1);

  choose_shape(false);
  expect(mvlm_fuse_forward(out, tokens, row_index, weight, rows, batch, sequence, hidden, first, positions, vocab_start,
                           vocab_rows, vocab_size, row_count, chance(80), dtype, fault, nullptr));
  expect(mvlm_fuse_backward_rows(of_rows, workspace, gradient, row_index, batch, sequence, hidden, first, positions,
                                 row_count, dtype, fault, nullptr));
  count(fault[0]);

  // Ascending words that reach past the shard on both sides, each with a place of its own.
  const std::int64_t words_count = positions * batch;
  Buffer<std::int64_t> words(words_count), places(words_count);
  std::int64_t word = -2;
  for (std::int64_t i = 0; i < words_count; ++i) {
    word += chance(40) ? pick(0, 2) : 0;
    words[i] = word;
    places[i] = i;
  }
  expect(mvlm_fuse_backward_weight(of_weight, gradient, words, places, words_count, hidden, vocab_rows, dtype, nullptr));
}

void patchify() {
  const int dtype = static_cast<int>(pick(0, 3)), patch_size = static_cast<int>(pick(1, 9));
  const int group = static_cast<int>(pick(1, 3));
  const std::int64_t picture_count = pick(0, 5);
  Buffer<std::int64_t> table(4 * picture_count);
  std::int64_t bytes = 0, patches = 0;
  for (std::int64_t i = 0; i < picture_count; ++i) {
    const std::int64_t rows = pick(0, 3) * group, columns = pick(0, 3) * group;
    const std::int64_t height = rows * patch_size + pick(0, patch_size - 1);
    const std::int64_t width = columns * patch_size + pick(0, patch_size - 1);
    const std::int64_t line[] = {bytes, height, width, patches};
    for (int k = 0; k < 4; ++k) table[4 * i + k] = line[k];
    bytes += 3 * height * width;
    patches += rows * columns;
  }
  const bool hostile = chance(40);
  if (hostile) patches += pick(0, 2);
  for (std::int64_t i = 0; hostile && i < 4 * picture_count; ++i) {
    if (chance(15)) table[i] = chance(40) ? pick(INT64_MIN, INT64_MAX) : pick(-3, 40);
  }
  Buffer<std::uint8_t> pixels(bytes);
  Buffer<unsigned char> out(patches * 3 * patch_size * patch_size * kSize[dtype]);
  Buffer<std::int32_t> coordinates(2 * patches), fault(1);
  const float mean[] = {120.0f, 110.0f, 100.0f}, deviation[] = {60.0f, 65.0f, 70.0f};
  choose_shape(true);
  expect(mvlm_patchify(out, coordinates, pixels, bytes, table, picture_count, patches, patch_size, group, mean,
                       deviation, dtype, fault, nullptr));
  count(fault[0]);
}

}  // namespace

int main() {
  for (int i = 0; i < 1500; ++i) {
    fuse();
    patchify();
  }
  std::printf("%d %d\n", without_fault, with_fault);
}
