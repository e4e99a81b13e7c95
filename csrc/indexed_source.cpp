#include "indexed_source.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace megatron_vlm {
namespace {

constexpr std::uint8_t kCaption = 2;

template <typename T>
T element(const unsigned char* array, std::int64_t i) {
  T value;
  std::memcpy(&value, array + i * static_cast<std::int64_t>(sizeof(T)), sizeof value);
  return value;
}

[[noreturn]] void refuse(const Span& span, const std::string& reason) {
  throw std::invalid_argument("source " + std::to_string(span.source) + ", document " + std::to_string(span.document) +
                              ": " + reason);
}

// The text of a sequence from its id `skipped` on.
Piece text_piece(const IndexedSource& source, const Span& span, std::int64_t sequence, std::int64_t skipped,
                 std::int64_t count) {
  const std::int64_t size = id_size(source.type);
  const std::int64_t pointer = element<std::int64_t>(source.pointers, sequence);
  if (pointer < 0 || pointer > source.data_bytes || source.length(sequence) > (source.data_bytes - pointer) / size) {
    refuse(span, "sequence " + std::to_string(sequence) + " lies outside the data");
  }
  return {source.data + pointer + skipped * size, count, 0, source.type, true};
}

}  // namespace

std::int64_t IndexedSource::length(std::int64_t sequence) const {
  if (!is_image(sequence)) return element<std::int32_t>(lengths, sequence);
  if (picture.patch == 0) return picture.most;
  const auto [rows, columns] =
      native_groups(element<std::int32_t>(facts, 2 * sequence), element<std::int32_t>(facts, 2 * sequence + 1), picture);
  return rows * columns;
}

bool IndexedSource::is_learnt(std::int64_t sequence) const {
  return facts == nullptr || element<std::int32_t>(facts, 2 * sequence) != 0;
}

DocumentLength document_length(const IndexedSource& source, std::int64_t document) {
  const auto refuse_document = [document](const char* reason) {
    throw std::invalid_argument("document " + std::to_string(document) + ": " + reason);
  };
  if (document < 0 || document >= source.document_count) refuse_document("there is no such document");
  const auto first = element<std::int64_t>(source.documents, document);
  const auto after = element<std::int64_t>(source.documents, document + 1);
  if (first < 0 || after < first || after > source.sequences) refuse_document("its sequences lie outside the index");
  DocumentLength found{-1, 0, 0, 0, 0};
  bool image = false;
  for (std::int64_t sequence = first; sequence < after; ++sequence) {
    image = source.is_image(sequence);
    const std::int64_t length = source.length(sequence);
    found.positions += length;
    if (image) {
      ++found.pictures;
      found.rows += length;
      found.squares += length * length;
      found.picture_end = found.positions + 1;
    }
  }
  if (image) ++found.positions;
  return found;
}

void prefetch_borders(const IndexedSource& source, std::int64_t document) {
  if (document >= 0 && document < source.document_count) __builtin_prefetch(source.documents + 8 * document);
}

void prefetch_sequences(const IndexedSource& source, std::int64_t document) {
  if (document < 0 || document >= source.document_count) return;
  const auto first = element<std::int64_t>(source.documents, document);
  if (first < 0 || first >= source.sequences) return;
  __builtin_prefetch(source.lengths + 4 * first);
  __builtin_prefetch(source.modes + first);
}

void append_span(const std::vector<IndexedSource>& sources, const Span& span, std::int64_t image_token_id,
                 std::int64_t eod_id, Segments& segments, std::vector<PicturePlace>& pictures) {
  if (span.source < 0 || span.source >= static_cast<std::int64_t>(sources.size())) refuse(span, "there is no such source");
  const IndexedSource& source = sources[static_cast<std::size_t>(span.source)];
  if (span.document < 0 || span.document >= source.document_count) refuse(span, "there is no such document");
  if (span.start < 0 || span.length < 1) refuse(span, "a span begins at 0 or later and has a position or more");
  const auto first = element<std::int64_t>(source.documents, span.document);
  const auto after = element<std::int64_t>(source.documents, span.document + 1);
  if (first < 0 || after < first || after > source.sequences) refuse(span, "its sequences lie outside the index");

  SegmentView view{segments.pieces.size(), 0, span.length + 1, 0, segments.masked.size(), 0, kText};
  const std::int64_t end = span.start + span.length + 1;
  std::int64_t at = 0;  // of the sequence, in ids of the document
  for (std::int64_t sequence = first; sequence < after; ++sequence) {
    const bool image = source.is_image(sequence);
    if (image) view.modality = kCaption;
    const std::int64_t length = source.length(sequence);
    if (length < 0) refuse(span, "sequence " + std::to_string(sequence) + " has a negative length");
    const std::int64_t from = std::max(span.start, at), to = std::min(end, at + length);
    if (from < to) {
      if (image) {
        segments.pieces.push_back({nullptr, to - from, image_token_id, IdType::kInt64, false});
        if (span.start <= at) pictures.emplace_back(span.source, sequence);
      } else {
        segments.pieces.push_back(text_piece(source, span, sequence, from - at, to - from));
        if (!source.is_learnt(sequence)) segments.masked.push_back({from - span.start, to - span.start});
      }
    }
    at += length;
  }
  if (at + 1 < end) {
    refuse(span, "positions " + std::to_string(span.start) + " to " + std::to_string(span.start + span.length) +
                     " of " + std::to_string(at) + " ids");
  }
  if (at < end) segments.pieces.push_back({nullptr, end - at, eod_id, IdType::kInt64, false});
  view.pieces = segments.pieces.size() - view.first_piece;
  view.masked = segments.masked.size() - view.first_masked;
  segments.views.push_back(view);
}

}  // namespace megatron_vlm
