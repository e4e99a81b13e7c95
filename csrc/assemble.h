// Laying packed documents out as one training batch.  Plain C++17: it knows neither Python nor torch, so that it can
// be compiled on its own under sanitizers (tests/ops/test_assemble_sanitized.py does).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace megatron_vlm {

// Element types of token ids, by the codes of Megatron's .idx files.
enum class IdType : std::uint8_t { kUint8 = 1, kInt8 = 2, kInt16 = 3, kInt32 = 4, kInt64 = 5, kUint16 = 8 };

// Bytes of an element; 0 for a code that is no integer type.
std::int64_t id_size(IdType type);

// Some ids of a segment as they lie in memory, at any alignment, or `count` times one id.
struct Piece {
  const void* ids;  // null: `repeated` instead
  std::int64_t count;
  std::int64_t repeated;
  IdType type;
  bool is_text;  // checked against the vocabulary and for image placeholders
};

// Ids [begin, end) of a segment, whose prediction is not learnt.
struct IdRange {
  std::int64_t begin, end;
};

// One document, or one piece of a document: n + 1 ids, of which n positions are trained and ids[1..n] are their labels.
struct SegmentView {
  std::size_t first_piece, pieces;
  std::int64_t length;     // n + 1
  std::int64_t loss_from;  // labels of positions before this one carry no loss
  std::size_t first_masked, masked;
  std::uint8_t modality;  // 0: no loss anywhere; otherwise written to label_modality wherever there is loss
};

struct Segments {
  std::vector<Piece> pieces;
  std::vector<IdRange> masked;
  std::vector<SegmentView> views;
  std::vector<std::int64_t> per_pack;
};

// Where the batch goes: each points at packs * sequence_length elements, owned by the caller.
struct BatchBuffers {
  std::int64_t* tokens;
  std::int64_t* labels;
  float* loss_mask;
  std::int64_t* position_ids;
  std::uint8_t* label_modality;
  std::uint8_t* token_modality;
  std::int32_t* row_index;
};

// A text id that must not be there.
struct IdFault {
  std::int64_t segment = -1;  // -1: none
  std::int64_t id = 0;
};

// What is only known once the batch is laid out.
struct BatchIndex {
  std::vector<std::int32_t> cu_seqlens;  // 0, then the end of every segment, padding included
  std::int64_t max_seqlen = 0;           // longest segment, padding included
  std::int64_t image_rows = 0;           // positions whose token is the image placeholder
  IdFault fault;                         // the first, where vocab_size was given
};

struct BatchSpec {
  std::int64_t sequence_length;
  std::int64_t image_token_id;
  std::int64_t pad_id;
  std::int64_t vocab_size = 0;  // ids of text pieces have to be below it and no placeholder; 0: unchecked
};

constexpr std::uint8_t kText = 1;
constexpr std::uint8_t kImage = 3;

// Lays per_pack[0] segments into pack 0, the next per_pack[1] into pack 1, and so on; what is left of a pack becomes one
// segment of padding.  Throws std::invalid_argument, naming the pack and the segment, before anything would be written past
// a buffer's end.
BatchIndex assemble_packs(const Segments& segments, const BatchSpec& spec, const BatchBuffers& out);

}  // namespace megatron_vlm
