#include "pack_plan.h"

#include <algorithm>
#include <stdexcept>
#include <tuple>

#include "length_set.h"

namespace megatron_vlm {
namespace {

// Packs with equal room: a stack a room, linked through the packs, so that nothing is allocated on the way.
class OpenPacks {
 public:
  explicit OpenPacks(std::int64_t capacity) : rooms_(capacity + 1), top_(capacity + 1, -1) {}

  // A pack with the least room that is at least `length`, taken out; -1 where there is none.
  std::int64_t take(std::int64_t length, std::int64_t& room) {
    room = rooms_.first_from(length);
    if (room < 0) return -1;
    const std::int64_t pack = top_[room];
    top_[room] = below_[pack];
    if (top_[room] < 0) rooms_.remove(room);
    return pack;
  }

  void put(std::int64_t pack, std::int64_t room) {
    if (pack == static_cast<std::int64_t>(below_.size())) below_.push_back(-1);
    if (room == 0) return;  // full: nothing has length 0
    below_[pack] = top_[room];
    if (top_[room] < 0) rooms_.add(room);
    top_[room] = static_cast<std::int32_t>(pack);
  }

 private:
  LengthSet rooms_;
  std::vector<std::int32_t> top_;
  std::vector<std::int32_t> below_;
};

}  // namespace

Placement pack_best_fit(const std::int64_t* lengths, std::int64_t count, std::int64_t capacity) {
  if (capacity < 1 || count < 0 || count > INT32_MAX) throw std::invalid_argument("capacity or count out of range");
  // Counting sort, longest first.  first[l] becomes where items of length l start, and in the end where they stop.
  std::vector<std::int64_t> first(capacity + 1, 0);
  for (std::int64_t i = 0; i < count; ++i) {
    if (lengths[i] < 1 || lengths[i] > capacity) throw std::invalid_argument("a length is not in 1..capacity");
    ++first[lengths[i]];
  }
  std::int64_t before = 0;
  for (std::int64_t length = capacity; length >= 1; --length) {
    const std::int64_t here = first[length];
    first[length] = before;
    before += here;
  }
  std::vector<std::int32_t> sorted(count);
  for (std::int64_t i = 0; i < count; ++i) sorted[first[lengths[i]]++] = static_cast<std::int32_t>(i);

  Placement result;
  result.pack.resize(count);
  OpenPacks open(capacity);
  std::int64_t done = 0;
  for (std::int64_t length = capacity; length >= 1; --length) {
    for (; done < first[length]; ++done) {
      std::int64_t room = 0;
      std::int64_t pack = open.take(length, room);
      if (pack < 0) {
        pack = result.packs++;
        room = capacity;
      }
      result.pack[sorted[done]] = pack;
      open.put(pack, room - length);
    }
  }
  return result;
}

Grouping group_by_pack(const std::int64_t* pack, std::int64_t count, std::int64_t packs) {
  if (packs < 0 || count < 0) throw std::invalid_argument("counts must not be negative");
  Grouping result;
  result.starts.assign(packs + 2, 0);
  // One place further than it belongs: filling in below moves every start to where it has to be in the end.
  std::int64_t* next = result.starts.data() + 1;
  for (std::int64_t i = 0; i < count; ++i) {
    if (pack[i] < 0 || pack[i] >= packs) throw std::invalid_argument("a pack number is out of range");
    ++next[pack[i]];
  }
  std::int64_t before = 0;
  for (std::int64_t p = 0; p <= packs; ++p) {
    const std::int64_t here = next[p];
    next[p] = before;
    before += here;
  }
  result.items.resize(count);
  for (std::int64_t i = 0; i < count; ++i) result.items[next[pack[i]]++] = i;
  result.starts.resize(packs + 1);
  return result;
}

Grouping order_in_packs(const std::int64_t* pack, const std::int64_t* document, const std::int64_t* start,
                        std::int64_t count, std::int64_t packs) {
  Grouping result = group_by_pack(pack, count, packs);
  const auto earlier = [document, start](std::int64_t a, std::int64_t b) {
    return std::tie(document[a], start[a], a) < std::tie(document[b], start[b], b);
  };
  const auto begin = result.items.begin();
  for (std::int64_t p = 0; p < packs; ++p) std::sort(begin + result.starts[p], begin + result.starts[p + 1], earlier);
  return result;
}

}  // namespace megatron_vlm
