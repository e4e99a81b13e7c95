// Launching the kernels of fuse.cuh: sizes are checked, the widest unit that fits is chosen, and nothing waits.
#include "fuse.cuh"

#include "kernels.h"
#include "portable.h"

namespace mvlm {
namespace {

// More blocks than any GPU has room for at once, so that all are busy; a block does the rest in turn.
constexpr int64_t kMostBlocks = 1 << 20;
// The hardware's limit for y of the grid.
constexpr int64_t kMostBlocksInY = 65535;

// As many threads along a row as its units keep busy, a warp at least, and the rest of the block for further rows.
dim3 block_for(int64_t units, int64_t units_per_thread) {
  unsigned x = 32;
  while (x < kFuseThreads && x * units_per_thread < units) x *= 2;
  return {x, kFuseThreads / x};
}

unsigned blocks_for(int64_t work, int64_t per_block, int64_t most) {
  return static_cast<unsigned>(at_most(ceil_div(work, per_block), most));
}

template <typename T, typename Source>
cudaError_t copy_in_units(void* out, const Source& source, int64_t positions, int64_t batch, int64_t units,
                          cudaStream_t stream) {
  const dim3 block = block_for(units, kAhead);
  const dim3 grid(blocks_for(positions, block.y, kMostBlocks), blocks_for(batch, 1, kMostBlocksInY));
  return launch(copy_rows<T, Source>, grid, block, stream, static_cast<T*>(out), source, positions, batch, units);
}

// `from` are the two addresses that the source may find rows at.
template <typename Source>
cudaError_t copy(void* out, const Source& source, int64_t positions, int64_t batch, int64_t row_bytes,
                 const void* from, const void* or_from, cudaStream_t stream) {
  if (positions == 0 || batch == 0) return cudaSuccess;
  if (moves_in(16, row_bytes, out, from, or_from)) {
    return copy_in_units<Unit<16>>(out, source, positions, batch, row_bytes / 16, stream);
  }
  if (moves_in(8, row_bytes, out, from, or_from)) {
    return copy_in_units<Unit<8>>(out, source, positions, batch, row_bytes / 8, stream);
  }
  if (moves_in(4, row_bytes, out, from, or_from)) {
    return copy_in_units<Unit<4>>(out, source, positions, batch, row_bytes / 4, stream);
  }
  return copy_in_units<Unit<2>>(out, source, positions, batch, row_bytes / 2, stream);
}

bool is_slice(int64_t batch, int64_t sequence, int64_t hidden, int64_t first_position, int64_t positions) {
  return batch >= 0 && sequence >= 0 && hidden >= 1 && first_position >= 0 && positions >= 0 &&
         first_position <= sequence && positions <= sequence - first_position;
}

template <typename T, int kBytes>
cudaError_t sum_in_units(void* out, const void* gradient, const int64_t* words, const int64_t* places,
                         int64_t words_count, int64_t hidden, int64_t vocab_rows, cudaStream_t stream) {
  const int64_t units = hidden / (kBytes / static_cast<int64_t>(sizeof(T)));
  const dim3 block = block_for(units, 1);
  const dim3 grid(blocks_for(ceil_div(vocab_rows, kRowsPerSearch), block.y, kMostBlocks),
                  blocks_for(units, block.x, kMostBlocksInY));
  return launch(sum_words<T, kBytes>, grid, block, stream, static_cast<Unit<kBytes>*>(out),
                static_cast<const Unit<kBytes>*>(gradient), words, places, words_count, units, vocab_rows);
}

}  // namespace
}  // namespace mvlm

extern "C" int mvlm_fuse_forward(void* out, const int64_t* tokens, const int32_t* row_index, const void* weight,
                                 const void* rows, int64_t batch, int64_t sequence, int64_t hidden,
                                 int64_t first_position, int64_t positions, int64_t vocab_start, int64_t vocab_rows,
                                 int64_t vocab_size, int64_t row_count, int rows_here, int dtype, int32_t* fault,
                                 void* stream) {
  using namespace mvlm;
  const int size = size_of(dtype);
  if (size == 0 || !is_slice(batch, sequence, hidden, first_position, positions) || vocab_start < 0 ||
      vocab_rows < 0 || row_count < 0) {
    return cudaErrorInvalidValue;
  }
  const int64_t row_bytes = hidden * size;
  const WordOrRow source{tokens,      row_index,  static_cast<const char*>(weight), static_cast<const char*>(rows),
                         sequence,    first_position,
                         vocab_start, vocab_rows, vocab_size,                       row_count,
                         row_bytes,   fault,      rows_here != 0};
  return copy(out, source, positions, batch, row_bytes, weight, rows, static_cast<cudaStream_t>(stream));
}

extern "C" int mvlm_fuse_backward_rows(void* gradient_of_rows, int64_t* position_of_row, const void* gradient,
                                       const int32_t* row_index, int64_t batch, int64_t sequence, int64_t hidden,
                                       int64_t first_position, int64_t positions, int64_t row_count, int dtype,
                                       int32_t* fault, void* stream) {
  using namespace mvlm;
  const int size = size_of(dtype);
  if (size == 0 || !is_slice(batch, sequence, hidden, first_position, positions) || row_count < 0) {
    return cudaErrorInvalidValue;
  }
  const auto on = static_cast<cudaStream_t>(stream);
  if (row_count > 0) {
    const cudaError_t error =
        cudaMemsetAsync(position_of_row, 0xff, static_cast<size_t>(row_count) * sizeof(int64_t), on);
    if (error != cudaSuccess) return error;
  }
  if (positions > 0 && batch > 0) {
    const dim3 grid(blocks_for(positions, kFuseThreads, kMostBlocks), blocks_for(batch, 1, kMostBlocksInY));
    const cudaError_t error = launch(find_positions, grid, dim3(kFuseThreads), on, position_of_row, row_index, batch,
                                     sequence, first_position, positions, row_count, fault);
    if (error != cudaSuccess) return error;
  }
  const int64_t row_bytes = hidden * size;
  const NamedPosition source{position_of_row, static_cast<const char*>(gradient), row_bytes};
  return copy(gradient_of_rows, source, row_count, 1, row_bytes, gradient, nullptr, on);
}

extern "C" int mvlm_fuse_backward_weight(void* gradient_of_weight, const void* gradient, const int64_t* words,
                                         const int64_t* places, int64_t words_count, int64_t hidden,
                                         int64_t vocab_rows, int dtype, void* stream) {
  using namespace mvlm;
  const int size = size_of(dtype);
  if (size == 0 || words_count < 0 || hidden < 1 || vocab_rows < 0) return cudaErrorInvalidValue;
  if (vocab_rows == 0) return cudaSuccess;
  // A row that fits no wider unit is summed item by item.
  const bool wide = moves_in(16, hidden * size, gradient_of_weight, gradient);
  const auto sum = [&](auto in_wide_units, auto in_items) {
    return (wide ? in_wide_units : in_items)(gradient_of_weight, gradient, words, places, words_count, hidden,
                                             vocab_rows, static_cast<cudaStream_t>(stream));
  };
  switch (dtype) {
    case MVLM_FLOAT32: return sum(sum_in_units<float, 16>, sum_in_units<float, 4>);
    case MVLM_BFLOAT16: return sum(sum_in_units<Bfloat16, 16>, sum_in_units<Bfloat16, 2>);
    case MVLM_FLOAT16: return sum(sum_in_units<Float16, 16>, sum_in_units<Float16, 2>);
    default: return sum(sum_in_units<double, 16>, sum_in_units<double, 8>);
  }
}
