#include "window_rows.h"

#include <stdexcept>

namespace megatron_vlm {
namespace {

void check_pack(const PackedPieces& pieces, std::int64_t pack) {
  if (pack < 0 || pack >= pieces.packs) throw std::invalid_argument("a pack that is not there");
  const std::int64_t begin = pieces.pack_starts[pack], end = pieces.pack_starts[pack + 1];
  if (begin < 0 || end < begin || end > pieces.count) throw std::invalid_argument("pack_starts do not go up to the pieces");
}

std::int64_t entry_of(const PackedPieces& pieces, const EntryColumns& entries, std::int64_t piece) {
  const std::int64_t entry = pieces.entry[piece];
  if (entry < 0 || entry >= entries.count) throw std::invalid_argument("a piece of an entry that is not there");
  return entry;
}

}  // namespace

PackAmounts pack_amounts(const PackedPieces& pieces, const EntryColumns& entries, std::int64_t sources) {
  const auto cells = static_cast<std::size_t>(pieces.packs * sources);
  PackAmounts found{std::vector<std::int64_t>(cells), std::vector<std::int64_t>(cells), std::vector<std::int64_t>(cells)};
  for (std::int64_t pack = 0; pack < pieces.packs; ++pack) {
    check_pack(pieces, pack);
    for (std::int64_t piece = pieces.pack_starts[pack]; piece < pieces.pack_starts[pack + 1]; ++piece) {
      const std::int64_t entry = entry_of(pieces, entries, piece), source = entries.source[entry];
      if (source < 0 || source >= sources) throw std::invalid_argument("an entry of a source that is not there");
      const auto cell = static_cast<std::size_t>(pack * sources + source);
      found.positions[cell] += pieces.length[piece];
      if (pieces.start[piece] == 0) {
        found.visual[cell] += entries.visual[entry];
        found.documents[cell] += entries.begins[entry];
      }
    }
  }
  return found;
}

WindowRows window_rows(const PackedPieces& pieces, const EntryColumns& entries, const std::int64_t* order) {
  std::int64_t count = 0;
  for (std::int64_t place = 0; place < pieces.packs; ++place) {
    check_pack(pieces, order[place]);
    count += pieces.pack_starts[order[place] + 1] - pieces.pack_starts[order[place]];
  }
  // pieces come from all over the entries: one line of the cache each, not seven
  struct alignas(64) Entry {
    std::int64_t source, document, start, pictures, visual, squares;
  };
  std::vector<Entry> known(static_cast<std::size_t>(entries.count));
  for (std::int64_t i = 0; i < entries.count; ++i) {
    known[static_cast<std::size_t>(i)] = {entries.source[i],   entries.document[i], entries.start[i],
                                          entries.pictures[i], entries.visual[i],   entries.squares[i]};
  }
  WindowRows rows{std::vector<std::int64_t>(static_cast<std::size_t>(5 * count)),
                  std::vector<std::int64_t>(static_cast<std::size_t>(2 * count)),
                  std::vector<std::int64_t>(static_cast<std::size_t>(pieces.packs + 1))};
  std::int64_t *span = rows.spans.data(), *visual = rows.visual.data(), done = 0;
  for (std::int64_t place = 0; place < pieces.packs; ++place) {
    const std::int64_t pack = order[place];
    if (place + 1 < pieces.packs) {  // the next one's entries are on their way while this one's are written
      const std::int64_t next = order[place + 1];
      for (std::int64_t piece = pieces.pack_starts[next]; piece < pieces.pack_starts[next + 1]; ++piece) {
        __builtin_prefetch(known.data() + entry_of(pieces, entries, piece));
      }
    }
    for (std::int64_t piece = pieces.pack_starts[pack]; piece < pieces.pack_starts[pack + 1]; ++piece) {
      const Entry& entry = known[static_cast<std::size_t>(entry_of(pieces, entries, piece))];
      const std::int64_t first = pieces.start[piece], whole = first == 0 ? 1 : 0;
      span[0] = entry.source;
      span[1] = entry.document;
      span[2] = entry.start + first;
      span[3] = pieces.length[piece];
      span[4] = entry.pictures * whole;
      visual[0] = entry.visual * whole;
      visual[1] = entry.squares * whole;
      span += 5;
      visual += 2;
      ++done;
    }
    rows.starts[static_cast<std::size_t>(place + 1)] = done;
  }
  return rows;
}

}  // namespace megatron_vlm
