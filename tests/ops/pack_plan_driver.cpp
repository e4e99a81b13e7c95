// Runs all of csrc/pack_plan.h on many small random inputs, so that a sanitizer sees any access beside them, and on
// inputs that must be refused.  Checks that no pack overflows and that every pack is used.  Prints the number of each.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#include "length_set.h"
#include "pack_plan.h"

namespace {

using namespace megatron_vlm;

std::mt19937 generator(1);

std::int64_t below(std::int64_t bound) { return static_cast<std::int64_t>(generator()) % bound; }

// The set against the library's, over sizes that need one to four levels.
bool length_sets_agree() {
  for (const std::int64_t size : {1, 63, 64, 65, 4096, 4097, 300000}) {
    LengthSet fast(size);
    std::set<std::int64_t> simple;
    for (int i = 0; i < 2000; ++i) {
      const std::int64_t x = below(size);
      if (below(3) == 0) {
        fast.remove(x);
        simple.erase(x);
      } else {
        fast.add(x);
        simple.insert(x);
      }
      const std::int64_t y = below(size);
      const auto from = simple.lower_bound(y);
      const auto after = simple.upper_bound(y);
      if (fast.first_from(y) != (from == simple.end() ? -1 : *from)) return false;
      if (fast.last_upto(y) != (after == simple.begin() ? -1 : *std::prev(after))) return false;
    }
    if (fast.first_from(size) > 0 || fast.last_upto(-1) != -1) return false;
  }
  return true;
}

bool fits(const std::vector<std::int64_t>& lengths, const Placement& placement, std::int64_t capacity) {
  std::vector<std::int64_t> fill(placement.packs, 0);
  for (std::size_t i = 0; i < lengths.size(); ++i) fill.at(placement.pack.at(i)) += lengths[i];
  for (const auto f : fill) {
    if (f < 1 || f > capacity) return false;
  }
  return true;
}

bool plan(std::int64_t capacity, bool wrong) {
  const std::int64_t count = below(40);
  std::vector<std::int64_t> lengths(count);
  std::vector<Budgets> items(count);
  for (std::int64_t i = 0; i < count; ++i) {
    lengths[i] = 1 + below(capacity);
    items[i] = {lengths[i], below(6), below(3)};
  }
  if (wrong && count > 0) (below(2) == 0 ? lengths[below(count)] : items[below(count)].tokens) = below(2) * (capacity + 1);
  const Placement best = pack_best_fit(lengths.data(), count, capacity);
  if (!fits(lengths, best, capacity)) return false;

  std::vector<std::int64_t> order(count);
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::shuffle(order.begin(), order.end(), generator);
  if (!fits(lengths, pack_within_budgets(items, order.data(), {capacity, 5 + below(9), 2 + below(4)}), capacity)) return false;

  std::vector<Piece> pieces(count);
  for (std::int64_t i = 0; i < count; ++i) pieces[i] = {i, 0, lengths[i], below(4) != 0};
  // One piece a pack leaves most to fill; best fit the least.
  Placement alone{order, count};
  for (const Placement& given : {best, alone}) {
    const FilledPacks filled = fill_pack_holes(pieces, given, capacity, 1 + below(4));
    std::vector<std::int64_t> filled_lengths;
    for (const Piece& piece : filled.pieces) filled_lengths.push_back(piece.length);
    if (!fits(filled_lengths, filled.placement, capacity) || filled.placement.packs > given.packs) return false;
    const Grouping groups = group_by_pack(filled.placement.pack.data(), static_cast<std::int64_t>(filled_lengths.size()),
                                          filled.placement.packs);
    if (groups.starts.back() != static_cast<std::int64_t>(filled_lengths.size())) return false;
  }

  const std::int64_t ranks = 1 + below(4);
  const std::int64_t micro_batches = 1 + below(3);
  std::vector<double> costs(below(12) * ranks * micro_batches + (wrong && count == 0 ? ranks * micro_batches - 1 : 0));
  for (auto& cost : costs) cost = static_cast<double>(below(50));
  const auto balanced = balance_packs(costs, ranks, micro_batches, 1 + below(5));
  return std::set<std::int64_t>(balanced.begin(), balanced.end()).size() == costs.size();
}

}  // namespace

int main() {
  if (!length_sets_agree()) return 1;
  int done = 0;
  int refused = 0;
  for (int round = 0; round < 2000; ++round) {
    try {
      if (!plan(1 + below(100), round % 2 == 1)) return 1;
      ++done;
    } catch (const std::invalid_argument&) {
      ++refused;
    }
  }
  std::printf("%d %d\n", done, refused);
  return 0;
}
