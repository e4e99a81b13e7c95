#include "fuse.h"

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

#include "half.h"
#include "streaming.h"
#include "threads.h"

namespace megatron_vlm {
namespace {

constexpr std::int64_t kBytesPerThread = 1 << 20;

// Flattened [count, batch] -> place in [batch, sequence].
std::int64_t place_of(const FuseSlice& slice, std::int64_t flat) {
  return flat % slice.batch * slice.sequence + slice.first + flat / slice.batch;
}

// Calls body(begin, end, streaming) for equal parts of `rows` rows of `bytes` each.
template <typename Body>
void over_rows(std::int64_t rows, std::size_t bytes, int threads, const Body& body) {
  const std::int64_t total = rows * static_cast<std::int64_t>(bytes);
  const int parts = useful_threads(threads, total, kBytesPerThread);
  const bool streaming = total >= kStreamingBytes;
  in_parallel(parts, [&](int part) {
    body(rows * part / parts, rows * (part + 1) / parts, streaming);
    if (streaming) finish_streaming();
  });
}

void copy_row(void* to, const void* from, std::size_t bytes, bool streaming) {
  if (streaming) {
    stream_row(to, from, bytes);
  } else {
    std::memcpy(to, from, bytes);
  }
}

void zero_row(void* to, std::size_t bytes, bool streaming) {
  if (streaming) {
    stream_zeros(to, bytes);
  } else {
    std::memset(to, 0, bytes);
  }
}

// The memory system sees the next row coming while this one is copied; rows lie anywhere in the vocabulary.
void announce(const unsigned char* row, std::size_t bytes) {
  if (row == nullptr) return;
  for (std::size_t at = 0; at < std::min<std::size_t>(bytes, 1024); at += 64) prefetch(row + at);
}

std::string at(const FuseSlice& slice, std::int64_t place) {
  return "sequence " + std::to_string(place / slice.sequence) + ", position " + std::to_string(place % slice.sequence);
}

template <typename T>
MEGATRON_VLM_CLONES void add_row(typename Wide<T>::type* sum, const T* row, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) sum[i] += Wide<T>::of(row[i]);
}

template <typename T>
MEGATRON_VLM_CLONES void round_row(T* row, const typename Wide<T>::type* sum, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) row[i] = Wide<T>::narrow(sum[i]);
}

// Places of each word of the shard, words ascending, a word's places ascending: a counting sort.
struct Occurrences {
  std::vector<std::int64_t> first;   // [vocab_rows + 1]
  std::vector<std::int64_t> places;  // flattened [count, batch]
};

Occurrences occurrences(const FuseSlice& slice) {
  const auto shard_word = [&](std::int64_t place) {
    const std::int64_t local = slice.tokens[place] - slice.vocab_start;
    return slice.row_index[place] < 0 && local >= 0 && local < slice.vocab_rows ? local : -1;
  };
  Occurrences found;
  found.first.assign(static_cast<std::size_t>(slice.vocab_rows) + 1, 0);
  const std::int64_t total = slice.count * slice.batch;
  for (std::int64_t b = 0; b < slice.batch; ++b) {
    const std::int64_t start = b * slice.sequence + slice.first;
    for (std::int64_t place = start; place < start + slice.count; ++place) {
      const std::int64_t word = shard_word(place);
      if (word >= 0) ++found.first[static_cast<std::size_t>(word) + 1];
    }
  }
  for (std::size_t word = 1; word < found.first.size(); ++word) found.first[word] += found.first[word - 1];
  found.places.resize(static_cast<std::size_t>(found.first.back()));
  std::vector<std::int64_t> next(found.first.begin(), found.first.end() - 1);
  for (std::int64_t flat = 0; flat < total; ++flat) {
    const std::int64_t word = shard_word(place_of(slice, flat));
    if (word >= 0) found.places[static_cast<std::size_t>(next[static_cast<std::size_t>(word)]++)] = flat;
  }
  return found;
}

template <typename T>
void weight_rows(T* of_weight, const T* gradient, std::int64_t hidden, const Occurrences& found, std::int64_t begin,
                 std::int64_t end, bool streaming) {
  using Sum = typename Wide<T>::type;
  const std::size_t bytes = static_cast<std::size_t>(hidden) * sizeof(T);
  std::vector<Sum> sum(static_cast<std::size_t>(hidden));
  std::vector<T> rounded(static_cast<std::size_t>(hidden));
  for (std::int64_t word = begin; word < end; ++word) {
    const std::int64_t from = found.first[static_cast<std::size_t>(word)];
    const std::int64_t to = found.first[static_cast<std::size_t>(word) + 1];
    T* row = of_weight + word * hidden;
    const auto gradient_row = [&](std::int64_t i) { return gradient + found.places[static_cast<std::size_t>(i)] * hidden; };
    if (to < static_cast<std::int64_t>(found.places.size())) {
      announce(reinterpret_cast<const unsigned char*>(gradient_row(to)), bytes);
    }
    if (from == to) {
      zero_row(row, bytes, streaming);
    } else if (from + 1 == to) {
      copy_row(row, gradient_row(from), bytes, streaming);
    } else {
      std::fill(sum.begin(), sum.end(), Sum(0));
      for (std::int64_t i = from; i < to; ++i) {
        if (i + 1 < to) announce(reinterpret_cast<const unsigned char*>(gradient_row(i + 1)), bytes);
        add_row<T>(sum.data(), gradient_row(i), hidden);
      }
      round_row<T>(rounded.data(), sum.data(), hidden);
      copy_row(row, rounded.data(), bytes, streaming);
    }
  }
}

template <typename T>
void weight_gradient(void* of_weight, const void* gradient, std::int64_t hidden, const FuseSlice& slice, int threads) {
  const Occurrences found = occurrences(slice);
  const std::int64_t bytes = hidden * static_cast<std::int64_t>(sizeof(T));
  const std::int64_t total = (slice.vocab_rows + found.first.back()) * bytes;
  const int parts = useful_threads(threads, total, kBytesPerThread);
  const bool streaming = slice.vocab_rows * bytes >= kStreamingBytes;
  // A word costs its row and its occurrences, and words are far from equally frequent: parts of equal cost, not of
  // equally many words.
  std::vector<std::int64_t> border(static_cast<std::size_t>(parts) + 1, slice.vocab_rows);
  border[0] = 0;
  std::int64_t word = 0;
  for (int part = 1; part < parts; ++part) {
    const std::int64_t share = (slice.vocab_rows + found.first.back()) * part / parts;
    while (word < slice.vocab_rows && word + found.first[static_cast<std::size_t>(word)] < share) ++word;
    border[static_cast<std::size_t>(part)] = word;
  }
  in_parallel(parts, [&](int part) {
    weight_rows<T>(static_cast<T*>(of_weight), static_cast<const T*>(gradient), hidden, found,
                   border[static_cast<std::size_t>(part)], border[static_cast<std::size_t>(part) + 1], streaming);
    if (streaming) finish_streaming();
  });
}

}  // namespace

void check_slice(const FuseSlice& slice) {
  if (slice.batch < 0 || slice.first < 0 || slice.count < 0 || slice.first + slice.count > slice.sequence) {
    throw std::invalid_argument("positions " + std::to_string(slice.first) + " to " +
                                std::to_string(slice.first + slice.count) + " are not inside sequences of " +
                                std::to_string(slice.sequence));
  }
  std::vector<bool> used(static_cast<std::size_t>(slice.row_count), false);
  for (std::int64_t b = 0; b < slice.batch; ++b) {
    const std::int64_t start = b * slice.sequence + slice.first;
    for (std::int64_t place = start; place < start + slice.count; ++place) {
      const std::int64_t row = slice.row_index[place];
      if (row < 0 ? row != -1 : row >= slice.row_count) {
        throw std::out_of_range(at(slice, place) + ": row " + std::to_string(row) + " of " +
                                std::to_string(slice.row_count) + " image rows");
      }
      if (row < 0) {
        const std::int64_t token = slice.tokens[place];
        if (token < 0 || token >= slice.vocab_size) {
          throw std::out_of_range(at(slice, place) + ": token " + std::to_string(token) + " of a vocabulary of " +
                                  std::to_string(slice.vocab_size));
        }
      } else {
        if (used[static_cast<std::size_t>(row)]) {
          throw std::out_of_range(at(slice, place) + ": image row " + std::to_string(row) + " stands at two positions");
        }
        used[static_cast<std::size_t>(row)] = true;
      }
    }
  }
}

void fuse_forward(void* out, const void* weight, const void* rows, std::int64_t hidden, bool rows_here, Dtype dtype,
                  const FuseSlice& slice, int threads) {
  const std::size_t bytes = static_cast<std::size_t>(hidden) * size_of(dtype);
  auto* to = static_cast<unsigned char*>(out);
  // What stands at a flattened position; null: zeros.
  const auto source = [&](std::int64_t flat) -> const unsigned char* {
    const std::int64_t place = place_of(slice, flat);
    const std::int64_t row = slice.row_index[place];
    if (row >= 0) {
      return rows_here ? static_cast<const unsigned char*>(rows) + static_cast<std::size_t>(row) * bytes : nullptr;
    }
    const std::int64_t local = slice.tokens[place] - slice.vocab_start;
    if (local < 0 || local >= slice.vocab_rows) return nullptr;
    return static_cast<const unsigned char*>(weight) + static_cast<std::size_t>(local) * bytes;
  };
  over_rows(slice.count * slice.batch, bytes, threads, [&](std::int64_t begin, std::int64_t end, bool streaming) {
    const unsigned char* next = begin < end ? source(begin) : nullptr;
    for (std::int64_t flat = begin; flat < end; ++flat) {
      const unsigned char* from = next;
      next = flat + 1 < end ? source(flat + 1) : nullptr;
      announce(next, bytes);
      unsigned char* row = to + static_cast<std::size_t>(flat) * bytes;
      if (from == nullptr) {
        zero_row(row, bytes, streaming);
      } else {
        copy_row(row, from, bytes, streaming);
      }
    }
  });
}

void fuse_backward_rows(void* of_rows, const void* gradient, std::int64_t hidden, Dtype dtype, const FuseSlice& slice,
                        int threads) {
  const std::size_t bytes = static_cast<std::size_t>(hidden) * size_of(dtype);
  std::vector<std::int64_t> flat_of(static_cast<std::size_t>(slice.row_count), -1);
  for (std::int64_t flat = 0; flat < slice.count * slice.batch; ++flat) {
    const std::int64_t row = slice.row_index[place_of(slice, flat)];
    if (row >= 0) flat_of[static_cast<std::size_t>(row)] = flat;
  }
  over_rows(slice.row_count, bytes, threads, [&](std::int64_t begin, std::int64_t end, bool streaming) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t flat = flat_of[static_cast<std::size_t>(row)];
      auto* to = static_cast<unsigned char*>(of_rows) + static_cast<std::size_t>(row) * bytes;
      if (flat < 0) {
        zero_row(to, bytes, streaming);
      } else {
        copy_row(to, static_cast<const unsigned char*>(gradient) + static_cast<std::size_t>(flat) * bytes, bytes,
                 streaming);
      }
    }
  });
}

void fuse_backward_weight(void* of_weight, const void* gradient, std::int64_t hidden, Dtype dtype,
                          const FuseSlice& slice, int threads) {
  switch (dtype) {
    case Dtype::kFloat32: return weight_gradient<float>(of_weight, gradient, hidden, slice, threads);
    case Dtype::kBFloat16: return weight_gradient<BFloat16>(of_weight, gradient, hidden, slice, threads);
    case Dtype::kFloat16: return weight_gradient<Half>(of_weight, gradient, hidden, slice, threads);
    case Dtype::kFloat64: return weight_gradient<double>(of_weight, gradient, hidden, slice, threads);
  }
}

}  // namespace megatron_vlm
