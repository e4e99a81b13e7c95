// Image rows into word rows: the decoder's input in one pass, and its gradients.  The meaning of every argument is in
// cuda/kernels.h, which does the same on a GPU.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace megatron_vlm {

// Positions [first, first + count) of `batch` sequences, and what stands there.
struct FuseSlice {
  const std::int64_t* tokens;     // [batch, sequence]
  const std::int32_t* row_index;  // [batch, sequence], -1: a word
  std::int64_t batch, sequence, first, count;
  std::int64_t vocab_start, vocab_rows;  // this shard of the vocabulary
  std::int64_t vocab_size;               // all of it
  std::int64_t row_count;
};

// Throws std::out_of_range, naming sequence and position, for a word outside the vocabulary, a row index outside
// [-1, row_count), or a row that two positions name; std::invalid_argument for a slice outside the sequences.
void check_slice(const FuseSlice& slice);

// The slice must have been checked.  out: [count, batch, hidden].
void fuse_forward(void* out, const void* weight, const void* rows, std::int64_t hidden, bool rows_here, Dtype dtype,
                  const FuseSlice& slice, int threads);

// of_rows: [row_count, hidden], zeros where no position of the slice names the row.
void fuse_backward_rows(void* of_rows, const void* gradient, std::int64_t hidden, Dtype dtype, const FuseSlice& slice,
                        int threads);

// of_weight: [vocab_rows, hidden].  Sums are taken in float (double for double) in ascending order of the flattened
// [count, batch], whatever the number of threads.
void fuse_backward_weight(void* of_weight, const void* gradient, std::int64_t hidden, Dtype dtype,
                          const FuseSlice& slice, int threads);

}  // namespace megatron_vlm
