// A set of small integers that answers "the least member from x on" and "the greatest up to x" in a few steps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace megatron_vlm {

// Members are 0 <= x < size.  One bit a value, and above it one bit a word that is not zero, up to a single word: each
// query climbs and descends log64(size) levels, two for packs of 4096 positions.
class LengthSet {
 public:
  explicit LengthSet(std::int64_t size) {
    do {
      size = (size + 63) / 64;
      levels_.emplace_back(static_cast<std::size_t>(size), std::uint64_t{0});
    } while (size > 1);
  }

  void add(std::int64_t x) {
    for (auto& level : levels_) {
      std::uint64_t& word = level[x >> 6];
      const bool was_empty = word == 0;
      word |= std::uint64_t{1} << (x & 63);
      if (!was_empty) return;
      x >>= 6;
    }
  }

  void remove(std::int64_t x) {
    for (auto& level : levels_) {
      std::uint64_t& word = level[x >> 6];
      word &= ~(std::uint64_t{1} << (x & 63));
      if (word != 0) return;
      x >>= 6;
    }
  }

  // The least member that is at least x, or -1.
  std::int64_t first_from(std::int64_t x) const {
    for (std::size_t height = 0; height < levels_.size(); ++height) {
      const auto index = static_cast<std::size_t>(x >> 6);
      if (index >= levels_[height].size()) return -1;
      const std::uint64_t word = levels_[height][index] & (~std::uint64_t{0} << (x & 63));
      if (word != 0) return descend<true>(height, static_cast<std::int64_t>(index) * 64 + __builtin_ctzll(word));
      x = (x >> 6) + 1;
    }
    return -1;
  }

  // The greatest member that is at most x, or -1.
  std::int64_t last_upto(std::int64_t x) const {
    for (std::size_t height = 0; height < levels_.size() && x >= 0; ++height) {
      const auto index = static_cast<std::size_t>(x >> 6);
      const std::uint64_t word = levels_[height][index] & (~std::uint64_t{0} >> (63 - (x & 63)));
      if (word != 0) return descend<false>(height, static_cast<std::int64_t>(index) * 64 + 63 - __builtin_clzll(word));
      x = (x >> 6) - 1;
    }
    return -1;
  }

 private:
  template <bool kLeast>
  std::int64_t descend(std::size_t height, std::int64_t x) const {
    while (height > 0) {
      const std::uint64_t word = levels_[--height][static_cast<std::size_t>(x)];
      x = x * 64 + (kLeast ? __builtin_ctzll(word) : 63 - __builtin_clzll(word));
    }
    return x;
  }

  std::vector<std::vector<std::uint64_t>> levels_;  // [0] holds the members
};

}  // namespace megatron_vlm
