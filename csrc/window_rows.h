// The packs of a window, as they are planned, into the rows that training goes by.
#pragma once

#include <cstdint>
#include <vector>

namespace megatron_vlm {

// Pieces of documents in packs: `entry` of the columns below, first position beyond the entry's own, positions.
struct PackedPieces {
  const std::int64_t* entry;
  const std::int64_t* start;
  const std::int64_t* length;
  const std::int64_t* pack_starts;  // packs + 1
  std::int64_t count, packs;
};

// What was drawn, a column each.
struct EntryColumns {
  const std::int64_t *source, *document, *start, *begins, *visual, *squares, *pictures;
  std::int64_t count;
};

// Sums over the pieces of each pack and source, [packs, sources] each.  Pictures and the beginning of a document count where
// a piece begins at its entry's beginning.
struct PackAmounts {
  std::vector<std::int64_t> positions, visual, documents;
};

// Throws std::invalid_argument where an entry, a source or a pack is outside its range.
PackAmounts pack_amounts(const PackedPieces& pieces, const EntryColumns& entries, std::int64_t sources);

// [count, 5] source, document, first position, positions, pictures; [count, 2] rows of pictures and their squares; and where
// each pack begins, packs taken in `order`.
struct WindowRows {
  std::vector<std::int64_t> spans, visual, starts;
};

// Throws std::invalid_argument where an entry or a pack is outside its range.
WindowRows window_rows(const PackedPieces& pieces, const EntryColumns& entries, const std::int64_t* order);

}  // namespace megatron_vlm
