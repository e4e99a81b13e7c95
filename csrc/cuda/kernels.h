// The CUDA operators' plain C interface: pointers, sizes and a stream; no torch, no allocation, no synchronisation.
//
// Built by nvcc into a shared library that is loaded only where CUDA is, and by g++ with the emulation of portable.h into
// one that the tests call with CPU memory.  Every function returns a cudaError_t as int: 0, or what launching gave.
//
// `fault` points to one int32 in device memory that the caller set to zero.  A kernel that meets an index out of range
// skips it, writes zeros where a value was due, and sets a bit of MvlmFault; nothing outside the buffers is touched.  The
// host reads it when it next synchronises anyway.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum MvlmDtype { MVLM_FLOAT32 = 0, MVLM_BFLOAT16 = 1, MVLM_FLOAT16 = 2, MVLM_FLOAT64 = 3 };

enum MvlmFault {
  MVLM_FAULT_TOKEN = 1,      // a word's id is outside [0, vocab_size)
  MVLM_FAULT_ROW = 2,        // a row index is outside [-1, row_count)
  MVLM_FAULT_ROW_TWICE = 4,  // two positions name the same row
  MVLM_FAULT_PICTURE = 8,    // the table of pictures does not fit its pixels or patches
};

// Raised whenever a function's arguments or meaning change.
int mvlm_interface(void);

// "cudaErrorInvalidConfiguration: invalid configuration argument"; never null.
const char* mvlm_error_string(int code);

// The decoder's input for positions [first_position, first_position + positions) of every sequence:
//   out[p, b, :] = rows[row_index[b, first_position + p]]        where that index is >= 0 and rows_here is not 0,
//                  0                                            where it is >= 0 and rows_here is 0,
//                  weight[tokens[b, first_position + p] - vocab_start]  where that word is in this shard,
//                  0                                            where it is in another shard.
// out    [positions, batch, hidden] of dtype        tokens     int64 [batch, sequence]
// weight [vocab_rows, hidden] of dtype              row_index  int32 [batch, sequence], -1: a word
// rows   [row_count, hidden] of dtype               (all contiguous; a token under an image row is never read as a word)
int mvlm_fuse_forward(void* out, const int64_t* tokens, const int32_t* row_index, const void* weight, const void* rows,
                      int64_t batch, int64_t sequence, int64_t hidden, int64_t first_position, int64_t positions,
                      int64_t vocab_start, int64_t vocab_rows, int64_t vocab_size, int64_t row_count, int rows_here,
                      int dtype, int32_t* fault, void* stream);

// gradient_of_rows[r, :] = gradient[p, b, :] of the position that names r, 0 for a row that none names.
// gradient [positions, batch, hidden], gradient_of_rows [row_count, hidden], both of dtype.
// position_of_row: int64 [row_count], workspace; what was in it does not matter.
int mvlm_fuse_backward_rows(void* gradient_of_rows, int64_t* position_of_row, const void* gradient,
                            const int32_t* row_index, int64_t batch, int64_t sequence, int64_t hidden,
                            int64_t first_position, int64_t positions, int64_t row_count, int dtype, int32_t* fault,
                            void* stream);

// gradient_of_weight[w, :] = sum of gradient over the positions of word w: in fp32 (fp64 for fp64), in ascending order of
// the flattened [positions, batch], rounded once.  Bits do not depend on grid, block or timing.
// words int64 [words_count], ascending: the shard-local ids of this slice's words, image rows left out or given any id
// outside [0, vocab_rows); places int64 [words_count]: the flattened position of each, ascending for equal ids.
// (A stable sort of the tokens gives both.)
int mvlm_fuse_backward_weight(void* gradient_of_weight, const void* gradient, const int64_t* words,
                              const int64_t* places, int64_t words_count, int64_t hidden, int64_t vocab_rows, int dtype,
                              void* stream);

// Pictures, uint8 HWC with three channels, one after another in `pixels`, into normalised patch rows.
// pictures     int64 [picture_count, 4]: byte offset in pixels, height, width, number of the first patch
// out          [patches, 3 * patch_size^2] of dtype: channel first, then row, then column, as a convolution's weight
//              flattens; (x - 255 mean) / (255 std) in fp32, each operation rounded, then rounded to dtype
// coordinates  int32 [patches, 2]: row and column of the patch in its picture's grid of patches
// Order of a picture's patches: blocks of group x group patches in reading order, inside a block in reading order.  The
// rest of a picture that is smaller than a patch is left out; its grid of patches has to be a multiple of group.
// mean_255, std_255: three floats each in host memory, already multiplied by 255.
int mvlm_patchify(void* out, int32_t* coordinates, const uint8_t* pixels, int64_t pixel_bytes, const int64_t* pictures,
                  int64_t picture_count, int64_t patches, int patch_size, int group, const float* mean_255,
                  const float* std_255, int dtype, int32_t* fault, void* stream);

#ifdef __cplusplus
}
#endif
