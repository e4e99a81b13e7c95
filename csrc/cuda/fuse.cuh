// Fusing image rows into word rows, and the two gradients.  What each computes is said in kernels.h.
//
// All of it moves memory and computes next to nothing: what counts is that a thread moves 16 bytes at a time where rows
// allow it, has several loads under way before it uses the first, and that the threads of a warp lie side by side.
#pragma once

#include "numbers.h"
#include "portable.h"

namespace mvlm {

constexpr int kFuseThreads = 256;
// Blocks that a multiprocessor holds: a copy hides its waiting behind other blocks, a sum behind its own loads, which take
// registers.
constexpr int kBlocksThatCopy = 5;
constexpr int kBlocksThatSum = 2;
// Loads that a thread has under way.
constexpr int kAhead = 4;
constexpr int kAheadInSums = 8;
// Rows of the vocabulary that share one search: most rows of a large vocabulary are not in a slice at all, and then the
// search would be all the reading there is.
constexpr int kRowsPerSearch = 4;

// Where a row of the decoder's input is copied from; null where it is zeros.
struct WordOrRow {
  const int64_t* tokens;
  const int32_t* row_index;
  const char* weight;
  const char* rows;
  int64_t sequence, first_position;
  int64_t vocab_start, vocab_rows, vocab_size, row_count;
  int64_t row_bytes;
  int32_t* fault;
  bool rows_here;

  MVLM_DEVICE const char* find(int64_t position, int64_t b) const {
    const int64_t at = b * sequence + first_position + position;
    const int64_t index = load(row_index + at);
    if (index >= 0 && index < row_count) return rows_here ? rows + index * row_bytes : nullptr;
    if (index != -1) return refuse(MVLM_FAULT_ROW);
    const int64_t token = load(tokens + at);
    if (token < 0 || token >= vocab_size) return refuse(MVLM_FAULT_TOKEN);
    const int64_t local = token - vocab_start;
    return local >= 0 && local < vocab_rows ? weight + local * row_bytes : nullptr;
  }

  MVLM_DEVICE const char* refuse(int32_t bit) const {
    if (threadIdx.x == 0) set_fault(fault, bit);
    return nullptr;
  }
};

// Where the gradient of an image row is copied from.
struct NamedPosition {
  const int64_t* position_of_row;
  const char* gradient;
  int64_t row_bytes;

  MVLM_DEVICE const char* find(int64_t row, int64_t) const {
    const int64_t position = load(position_of_row + row);
    return position >= 0 ? gradient + position * row_bytes : nullptr;
  }
};

// out[p, b, :] = the row that `source` finds for it.  x runs over the units of a row, y of the block and x of the grid over
// positions, y of the grid over b: there is no division.
// Ordinary stores, not streaming ones: the next operator reads what is written here.
template <typename T, typename Source>
MVLM_KERNEL void MVLM_BOUNDS(kFuseThreads, kBlocksThatCopy)
    copy_rows(T* out, Source source, int64_t positions, int64_t batch, int64_t units) {
  const int64_t step = int64_t{gridDim.x} * blockDim.y;
  for (int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
    for (int64_t p = int64_t{blockIdx.x} * blockDim.y + threadIdx.y; p < positions; p += step) {
      const T* from = reinterpret_cast<const T*>(source.find(p, b));
      T* to = out + (p * batch + b) * units;
      for (int64_t start = threadIdx.x; start < units; start += int64_t{kAhead} * blockDim.x) {
        T part[kAhead] = {};
        if (from != nullptr) {
          MVLM_UNROLL for (int k = 0; k < kAhead; ++k) {
            const int64_t i = start + int64_t{k} * blockDim.x;
            if (i < units) part[k] = load(from + i);
          }
        }
        MVLM_UNROLL for (int k = 0; k < kAhead; ++k) {
          const int64_t i = start + int64_t{k} * blockDim.x;
          if (i < units) store(to + i, part[k]);
        }
      }
    }
  }
}

// position_of_row[r] = the position that names r, the first where several do.  The workspace holds -1 everywhere before.
// x over positions, y of the grid over b: row_index is read in the order in which it lies.
MVLM_KERNEL void MVLM_BOUNDS(kFuseThreads, kBlocksThatCopy)
    find_positions(int64_t* position_of_row, const int32_t* row_index, int64_t batch, int64_t sequence,
                   int64_t first_position, int64_t positions, int64_t row_count, int32_t* fault) {
  const int64_t thread = int64_t{threadIdx.y} * blockDim.x + threadIdx.x;
  const int64_t threads = int64_t{blockDim.x} * blockDim.y;
  for (int64_t b = blockIdx.y; b < batch; b += gridDim.y) {
    for (int64_t p = blockIdx.x * threads + thread; p < positions; p += gridDim.x * threads) {
      const int64_t row = load(row_index + b * sequence + first_position + p);
      if (row == -1) continue;
      if (row < 0 || row >= row_count) {
        set_fault(fault, MVLM_FAULT_ROW);
        continue;
      }
      if (keep_least(position_of_row + row, p * batch + b) != -1) set_fault(fault, MVLM_FAULT_ROW_TWICE);
    }
  }
}

// The first place in the ascending `words` from `begin` on where `word` or a greater one stands.
MVLM_DEVICE int64_t lower_bound(const int64_t* words, int64_t begin, int64_t end, int64_t word) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (load(words + middle) < word) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

// A unit of the sum over one word's positions, in their order.  The places of the next positions are under way while the
// gradients of these are added: without that, every addition would wait for two loads, one after the other.
template <typename T, int kBytes>
MVLM_DEVICE Unit<kBytes> sum_of_word(const Unit<kBytes>* gradient, const int64_t* places, int64_t begin, int64_t end,
                                     int64_t units) {
  constexpr int kItems = kBytes / static_cast<int>(sizeof(T));
  Wide<T> sum[kItems] = {};
  int64_t place[kAheadInSums] = {};
  MVLM_UNROLL for (int k = 0; k < kAheadInSums; ++k) {
    if (begin + k < end) place[k] = load(places + begin + k);
  }
  for (int64_t start = begin; start < end; start += kAheadInSums) {
    Unit<kBytes> part[kAheadInSums] = {};
    MVLM_UNROLL for (int k = 0; k < kAheadInSums; ++k) {
      if (start + k < end) part[k] = load(gradient + place[k] * units);
    }
    MVLM_UNROLL for (int k = 0; k < kAheadInSums; ++k) {
      if (start + kAheadInSums + k < end) place[k] = load(places + start + kAheadInSums + k);
    }
    MVLM_UNROLL for (int k = 0; k < kAheadInSums; ++k) {
      if (start + k < end) {
        T items[kItems];
        memcpy(items, &part[k], kBytes);
        MVLM_UNROLL for (int i = 0; i < kItems; ++i) sum[i] += widen(items[i]);
      }
    }
  }
  T rounded[kItems];
  MVLM_UNROLL for (int i = 0; i < kItems; ++i) narrow(sum[i], rounded[i]);
  Unit<kBytes> unit;
  memcpy(&unit, rounded, kBytes);
  return unit;
}

// x and y of the grid over the units of a row, y of the block and x of the grid over runs of kRowsPerSearch rows.
template <typename T, int kBytes>
MVLM_KERNEL void MVLM_BOUNDS(kFuseThreads, kBlocksThatSum)
    sum_words(Unit<kBytes>* out, const Unit<kBytes>* gradient, const int64_t* words, const int64_t* places,
              int64_t words_count, int64_t units, int64_t vocab_rows) {
  const int64_t first_unit = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  const int64_t unit_step = int64_t{gridDim.y} * blockDim.x;
  const int64_t row_step = int64_t{gridDim.x} * blockDim.y * kRowsPerSearch;
  int64_t row = (int64_t{blockIdx.x} * blockDim.y + threadIdx.y) * kRowsPerSearch;
  for (; row < vocab_rows; row += row_step) {
    int64_t begin = lower_bound(words, 0, words_count, row);
    for (int64_t w = row; w < row + kRowsPerSearch && w < vocab_rows; ++w) {
      const bool is_here = begin < words_count && load(words + begin) == w;
      const int64_t end = is_here ? lower_bound(words, begin, words_count, w + 1) : begin;
      for (int64_t u = first_unit; u < units; u += unit_step) {
        store(out + w * units + u, sum_of_word<T, kBytes>(gradient + u, places, begin, end, units));
      }
      begin = end;
    }
  }
}

}  // namespace mvlm
