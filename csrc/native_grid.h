// How many patches a picture takes that keeps its aspect; the twin of config/picture_rows.py, in whole numbers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

namespace megatron_vlm {

// Rows of a picture: `most` each, or, with a `patch`, what its shape asks for and `most` at most.
struct PictureRows {
  std::int64_t most;
  std::int64_t patch = 0;  // side in pixels where pictures keep their aspect; 0: they do not
  std::int64_t fold = 1;   // patches of a side that become one row
};

namespace native_grid_detail {

__extension__ using Wide = __int128;

inline std::int64_t floor_root(std::int64_t square) {
  auto root = static_cast<std::int64_t>(std::sqrt(static_cast<double>(square)));
  while (static_cast<Wide>(root) * root > square) --root;
  while (static_cast<Wide>(root + 1) * (root + 1) <= square) ++root;
  return root;
}

// The side whose square is numerator / denominator, rounded down and up, from 1 to most.
inline std::pair<std::int64_t, std::int64_t> whole_sides(Wide numerator, Wide denominator, std::int64_t most) {
  const auto down = floor_root(static_cast<std::int64_t>(numerator / denominator));
  const auto up = static_cast<Wide>(down) * down * denominator == numerator ? down : down + 1;
  const auto clipped = [most](std::int64_t side) { return std::min(std::max<std::int64_t>(1, side), most); };
  return {clipped(down), clipped(up)};
}

}  // namespace native_grid_detail

// (rows, columns) of groups of fold x fold patches. A side below 1 is one that is not known: one group.
inline std::pair<std::int64_t, std::int64_t> native_groups(std::int32_t height, std::int32_t width,
                                                           const PictureRows& picture) {
  using native_grid_detail::Wide;
  if (height < 1 || width < 1) return {1, 1};
  const std::int64_t h = height, w = width, unit = picture.patch * picture.fold, most = picture.most;
  const bool whole = static_cast<Wide>(h) * w <= static_cast<Wide>(most) * unit * unit;
  const auto rows = whole ? native_grid_detail::whole_sides(static_cast<Wide>(h) * h, static_cast<Wide>(unit) * unit, most)
                          : native_grid_detail::whole_sides(static_cast<Wide>(most) * h, w, most);
  const auto columns = whole
                           ? native_grid_detail::whole_sides(static_cast<Wide>(w) * w, static_cast<Wide>(unit) * unit, most)
                           : native_grid_detail::whole_sides(static_cast<Wide>(most) * w, h, most);
  std::pair<std::int64_t, std::int64_t> best{0, 0};
  Wide best_long = 0, best_short = 1;  // how much longer one side becomes beside the other, as a fraction
  for (const auto r : {rows.first, rows.second}) {
    for (const auto wanted : {columns.first, columns.second}) {
      const std::int64_t c = std::min(wanted, most / r);
      const Wide a = static_cast<Wide>(r) * w, b = static_cast<Wide>(c) * h;
      const Wide longer = std::max(a, b), shorter = std::min(a, b);
      const Wide ours = longer * best_short, theirs = best_long * shorter;
      const bool better = best.first == 0 || ours < theirs ||
                          (ours == theirs && std::make_pair(r * c, r) > std::make_pair(best.first * best.second, best.first));
      if (better) {
        best = {r, c};
        best_long = longer;
        best_short = shorter;
      }
    }
  }
  return best;
}

}  // namespace megatron_vlm
