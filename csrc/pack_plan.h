// Which documents go into one pack, and which packs onto which rank.  Plain C++17, without Python and torch.
//
// All of it is deterministic: it depends on the arguments alone, and ties are broken as written here.  The functions
// of megatron_vlm/ops/pack_plan_reference.py give the same results.  Arguments that would make them write beside their
// memory or loop for ever raise std::invalid_argument.
#pragma once

#include <cstdint>
#include <vector>

namespace megatron_vlm {

// The pack of each item, 0 <= pack < packs.  No pack is empty.
struct Placement {
  std::vector<std::int64_t> pack;
  std::int64_t packs = 0;
};

// Best-fit decreasing: items from the longest to the shortest (the earlier first among equals) into the fullest pack
// that has room, the one that came to that fill last among equals.  Packs are numbered as they are opened.
// 1 <= length <= capacity.  O(count * log64(capacity) + capacity).
Placement pack_best_fit(const std::int64_t* lengths, std::int64_t count, std::int64_t capacity);

// What an item needs, or a pack has left.
struct Budgets {
  std::int64_t tokens;
  std::int64_t patches;
  std::int64_t images;
};

// Items in the given order (a permutation) into the pack with the least tokens left among those that have room in
// every budget; then the least patches, then the least images left, then the one that came to that state last.
// 1 <= tokens <= capacity.tokens, and 0 <= the others <= their capacity.
//
// A balanced tree of the states of packs: O(log states) for an item, more where packs with patches left and packs with
// images left are many and not the same ones.
Placement pack_within_budgets(const std::vector<Budgets>& items, const std::int64_t* order, const Budgets& capacity);

// Items by pack, ascending inside each pack; pack p holds items[starts[p]] up to items[starts[p + 1]].
struct Grouping {
  std::vector<std::int64_t> items;
  std::vector<std::int64_t> starts;
};

Grouping group_by_pack(const std::int64_t* pack, std::int64_t count, std::int64_t packs);

// The same, but pieces of a pack by document and start, and those equal in both by their place.
Grouping order_in_packs(const std::int64_t* pack, const std::int64_t* document, const std::int64_t* start,
                        std::int64_t count, std::int64_t packs);

// A document or a piece of one: positions start up to start + length.
struct Piece {
  std::int64_t document;
  std::int64_t start;
  std::int64_t length;
  bool splittable;
};

struct FilledPacks {
  std::vector<Piece> pieces;  // those given, shortened where they were cut, and then the tails in order of the cuts
  Placement placement;
};

// Uses splittable pieces to leave as few positions empty as can be; needs no more packs than were given.
//
// As many of the emptiest packs of splittable pieces alone as the holes of all packs could hold are dissolved into a
// store.  Then every other pack, the smallest hole first, is filled from it: by a piece that fits exactly; else by
// exchanging one of its pieces for one that is longer by just the hole; else by the longest piece that fits, whole;
// and only else by cutting one, where exchanging comes first again because that keeps pieces long.  No cut makes a
// piece shorter than min_piece.  What is left in the store makes packs of its own, by pack_best_fit.
FilledPacks fill_pack_holes(const std::vector<Piece>& pieces, const Placement& placement, std::int64_t capacity,
                            std::int64_t min_piece);

// Packs by step, rank and micro-batch, as one array of steps * ranks * micro_batches pack numbers.
//
// costs has a multiple of ranks * micro_batches elements, in the order of training.  Steps are made of `window` steps'
// packs at a time (the last window may be shorter), so that a pack moves by less than a window:
//   1. the window's packs, costliest first, are dealt in micro_batches rounds to steps * ranks groups, in each round
//      the costliest to the group with the least so far (LPT with equal counts);
//   2. groups of like cost make a step: sorted, then cut;
//   3. inside a step the costliest group exchanges packs with others while that lowers the greater of the two,
//      until it is within 0.01 % of the mean;
//   4. steps go in order of the sum of their pack numbers, and in each the costliest group goes to the rank with the
//      least cost so far.
std::vector<std::int64_t> balance_packs(const std::vector<double>& costs, std::int64_t ranks,
                                        std::int64_t micro_batches, std::int64_t window);

// Shares are counted in parts of this, so that accounts are exact and the same on every machine.
constexpr std::int64_t kWholeShare = std::int64_t{1} << 32;

// What packs give to each source and what they owe it: arrays of packs * sources elements, in rows.
struct MixtureAccount {
  const std::int64_t* amounts;  // of pack and source: what the pack gives
  const std::int64_t* bases;    // of pack and source: that of which the source has a share
  const std::int64_t* shares;   // of place and source: the share at that place of the order, in parts of kWholeShare
  const double* scale;          // of source: one over a pack of it, in parts of kWholeShare
};

// The order in which each source stays near its share at every prefix: error diffusion over whole packs.
//
// `behind` is what each source is behind its share at the start, in parts of kWholeShare, and at the end on return.  At
// every place, of the next `candidates` packs in the given order the first is taken that leaves no source further than
// `close_enough` packs from its share, else the one that leaves the furthest source nearest.  Only where that is more
// than a pack are packs beyond the candidates looked at, until one leaves no source further than a pack.
std::vector<std::int64_t> order_packs(const MixtureAccount& account, std::int64_t packs,
                                      std::vector<std::int64_t>& behind, std::int64_t candidates, double close_enough);

}  // namespace megatron_vlm
