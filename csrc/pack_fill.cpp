#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>

#include "length_set.h"
#include "pack_plan.h"

namespace megatron_vlm {
namespace {

using Index = std::int64_t;  // of a piece

// Pieces without a pack, by length; of equal ones the last put in comes out first.
class Store {
 public:
  Store(std::int64_t capacity, std::size_t pieces) : lengths_(capacity + 1), top_(capacity + 1, -1), below_(pieces, -1) {}

  void put(Index piece, std::int64_t length) {
    if (piece >= static_cast<Index>(below_.size())) below_.resize(piece + 1, -1);
    below_[piece] = top_[length];
    if (top_[length] < 0) lengths_.add(length);
    top_[length] = piece;
  }

  Index take(std::int64_t length) {
    const Index piece = top_[length];
    top_[length] = below_[piece];
    if (top_[length] < 0) lengths_.remove(length);
    return piece;
  }

  bool has(std::int64_t length) const { return length < static_cast<std::int64_t>(top_.size()) && top_[length] >= 0; }
  std::int64_t shortest_from(std::int64_t length) const { return lengths_.first_from(length); }
  std::int64_t longest_upto(std::int64_t length) const { return lengths_.last_upto(length); }

 private:
  LengthSet lengths_;
  std::vector<Index> top_;
  std::vector<Index> below_;
};

class Filling {
 public:
  Filling(const std::vector<Piece>& pieces, const Placement& placement, std::int64_t capacity, std::int64_t min_piece)
      : capacity_(capacity), min_piece_(min_piece), store_(capacity, pieces.size() + placement.packs) {
    // a pack is cut for once at most: with room for that, nothing is copied again on the way
    pieces_.reserve(pieces.size() + placement.packs);
    pack_.reserve(pieces.size() + placement.packs);
    pieces_ = pieces;
    pack_ = placement.pack;
  }

  // The hole of `pack`, filled as far as the store can; `held` are its splittable pieces, and is left in disorder.
  void fill(std::int64_t pack, std::int64_t hole, std::vector<Index>& held) {
    const auto longer = [this](Index a, Index b) { return pieces_[a].length > pieces_[b].length; };
    // by insertion: they are few, and std::stable_sort would allocate for each pack
    for (auto at = held.begin(); at != held.end(); ++at) std::rotate(std::upper_bound(held.begin(), at, *at, longer), at, at + 1);
    while (hole > 0) {
      if (store_.has(hole)) {
        place(pack, store_.take(hole));
        return;
      }
      for (const Index piece : held) {
        if (!store_.has(pieces_[piece].length + hole)) continue;
        place(pack, store_.take(pieces_[piece].length + hole));
        set_aside(piece);
        return;
      }
      const std::int64_t whole = store_.longest_upto(hole);
      if (whole < 0) {
        cut_to_fit(pack, hole, held);
        return;
      }
      const Index piece = store_.take(whole);
      place(pack, piece);
      held.insert(std::upper_bound(held.begin(), held.end(), piece, longer), piece);
      hole -= whole;
    }
  }

  void set_aside(Index piece) {
    pack_[piece] = -1;
    store_.put(piece, pieces_[piece].length);
  }

  FilledPacks finish(std::int64_t packs);

 private:
  void place(std::int64_t pack, Index piece) { pack_[piece] = pack; }

  void cut_to_fit(std::int64_t pack, std::int64_t hole, const std::vector<Index>& held) {
    for (const Index piece : held) {
      if (cut_for(pack, pieces_[piece].length + hole)) {
        set_aside(piece);
        return;
      }
    }
    cut_for(pack, hole);
  }

  // Puts the first `length` positions of the shortest piece that leaves min_piece over into `pack`.
  bool cut_for(std::int64_t pack, std::int64_t length) {
    if (length < min_piece_) return false;
    const std::int64_t from = store_.shortest_from(length + min_piece_);
    if (from < 0) return false;
    const Index piece = store_.take(from);
    Piece tail = pieces_[piece];
    tail.start += length;
    tail.length -= length;
    pieces_[piece].length = length;
    place(pack, piece);
    pieces_.push_back(tail);
    pack_.push_back(-1);
    set_aside(static_cast<Index>(pieces_.size()) - 1);
    return true;
  }

  std::vector<Piece> pieces_;
  std::vector<std::int64_t> pack_;  // -1: in the store
  std::int64_t capacity_;
  std::int64_t min_piece_;
  Store store_;
};

FilledPacks Filling::finish(std::int64_t packs) {
  // Numbers without the dissolved packs.
  std::vector<std::int64_t> number(packs, 0);
  for (const std::int64_t pack : pack_) {
    if (pack >= 0) number[pack] = 1;
  }
  std::int64_t kept = 0;
  for (auto& n : number) n = n ? kept++ : -1;
  for (auto& pack : pack_) {
    if (pack >= 0) pack = number[pack];
  }
  std::vector<Index> rest;
  std::vector<std::int64_t> lengths;
  for (std::int64_t length = capacity_; (length = store_.longest_upto(length)) >= 0;) {
    rest.push_back(store_.take(length));
    lengths.push_back(length);
  }
  const Placement packed = pack_best_fit(lengths.data(), static_cast<std::int64_t>(lengths.size()), capacity_);
  for (std::size_t i = 0; i < rest.size(); ++i) pack_[rest[i]] = kept + packed.pack[i];
  return {std::move(pieces_), {std::move(pack_), kept + packed.packs}};
}

// Packs by hole, the smallest first; equal ones in order.
std::vector<std::int64_t> by_hole(const std::vector<std::int64_t>& holes, std::int64_t capacity) {
  std::vector<std::int64_t> next(capacity + 1, 0);
  for (const auto hole : holes) ++next[hole];
  std::int64_t before = 0;
  for (auto& n : next) {
    const auto here = n;
    n = before;
    before += here;
  }
  std::vector<std::int64_t> sorted(holes.size());
  for (std::size_t p = 0; p < holes.size(); ++p) sorted[next[holes[p]]++] = static_cast<std::int64_t>(p);
  return sorted;
}

}  // namespace

FilledPacks fill_pack_holes(const std::vector<Piece>& pieces, const Placement& placement, std::int64_t capacity,
                            std::int64_t min_piece) {
  if (capacity < 1 || min_piece < 1) throw std::invalid_argument("capacity and min_piece must be at least 1");
  if (placement.pack.size() != pieces.size()) throw std::invalid_argument("there must be one pack a piece");
  const Grouping groups = group_by_pack(placement.pack.data(), static_cast<std::int64_t>(pieces.size()), placement.packs);
  std::vector<std::int64_t> holes(placement.packs, capacity);
  std::vector<std::int64_t> fixed(placement.packs, 0);  // pieces that cannot be split
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const std::int64_t pack = placement.pack[i];
    holes[pack] -= pieces[i].length;
    if (pieces[i].length < 1 || holes[pack] < 0) throw std::invalid_argument("pack " + std::to_string(pack) + " overflows");
    if (!pieces[i].splittable) ++fixed[pack];
  }
  std::int64_t waste = 0;
  for (const auto hole : holes) waste += hole;

  const auto sorted = by_hole(holes, capacity);
  const auto each = [&groups](std::int64_t pack, auto&& act) {
    for (std::int64_t i = groups.starts[pack]; i < groups.starts[pack + 1]; ++i) act(groups.items[i]);
  };
  Filling filling(pieces, placement, capacity, min_piece);
  std::int64_t superfluous = waste / capacity;
  for (std::size_t i = sorted.size(); i > 0 && superfluous > 0; --i) {
    const std::int64_t pack = sorted[i - 1];
    if (fixed[pack] > 0) continue;
    each(pack, [&filling](Index piece) { filling.set_aside(piece); });
    holes[pack] = 0;  // nothing to fill any more
    --superfluous;
  }
  std::vector<Index> held;
  for (const std::int64_t pack : sorted) {
    if (holes[pack] == 0) continue;
    held.clear();
    each(pack, [&](Index piece) {
      if (pieces[piece].splittable) held.push_back(piece);
    });
    filling.fill(pack, holes[pack], held);
  }
  FilledPacks result = filling.finish(placement.packs);
  if (result.placement.packs > placement.packs) return {pieces, placement};
  return result;
}

}  // namespace megatron_vlm
