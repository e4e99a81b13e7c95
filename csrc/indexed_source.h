// Documents of Megatron's indexed datasets as segments of a batch: what a span of one is made of, read where it lies.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "assemble.h"
#include "native_grid.h"

namespace megatron_vlm {

// A dataset as its files are mapped.  The index arrays may lie at any alignment, as the format leaves them.
struct IndexedSource {
  const unsigned char* data;
  std::int64_t data_bytes;
  IdType type;
  const unsigned char* lengths;    // int32 [sequences], in elements
  const unsigned char* pointers;   // int64 [sequences], in bytes
  const unsigned char* documents;  // int64 [document_count + 1]
  const unsigned char* modes;      // int8 [sequences], 1: an image
  const unsigned char* facts;      // int32 [sequences, 2], of a text: 1 or 0 whether it is learnt; null: all text is.
                                   // Of a picture: its height and width in pixels
  std::int64_t sequences, document_count;
  PictureRows picture;  // rows that a picture has; with a patch, facts must be there

  std::int64_t length(std::int64_t sequence) const;
  bool is_image(std::int64_t sequence) const { return modes[sequence] != 0; }
  bool is_learnt(std::int64_t sequence) const;
};

// Positions start .. start + length of a document whose pictures are expanded to placeholders.
struct Span {
  std::int64_t source, document, start, length;
};

// What planning knows of a document whose pictures are expanded: positions, pictures, and the ids up to and with the last
// picture.  Of a document of k ids k - 1 are positions, or k where a picture is at its end, after which an end of document
// comes; of one without sequences -1. `rows` are the placeholders of its pictures, `squares` the sum of their squares.
struct DocumentLength {
  std::int64_t positions, pictures, picture_end, rows, squares;
};

// Throws std::invalid_argument for a document that is not there or whose sequences lie outside the index.
DocumentLength document_length(const IndexedSource& source, std::int64_t document);

// Have a document's part of the index on its way before it is asked for: its borders, then what they enclose.
void prefetch_borders(const IndexedSource& source, std::int64_t document);
void prefetch_sequences(const IndexedSource& source, std::int64_t document);

// A picture by the source and the sequence that hold it.
using PicturePlace = std::pair<std::int64_t, std::int64_t>;

// Appends a span to `segments`, and the pictures that begin in it to `pictures` in reading order.  Text that is not learnt
// is masked.  After a document's end
// there is `eod_id`.  A document with a picture counts as a caption (2), another as text (1).  Throws std::invalid_argument
// for a span outside its document or a dataset that points outside its data.
void append_span(const std::vector<IndexedSource>& sources, const Span& span, std::int64_t image_token_id,
                 std::int64_t eod_id, Segments& segments, std::vector<PicturePlace>& pictures);

}  // namespace megatron_vlm
