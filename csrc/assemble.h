// Laying packed documents out as one training batch.  Plain C++17: it knows neither Python nor torch, so that it can
// be compiled on its own under sanitizers (tests/ops/test_assemble_sanitized.py does).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace megatron_vlm {

// One document, or one piece of a document, as the caller owns it.
struct SegmentView {
  const std::int32_t* ids;  // `length` token ids, contiguous
  std::int64_t length;      // n + 1: n positions are trained, ids[1..n] are their labels
  std::int64_t loss_from;   // labels of positions before this one carry no loss
  std::uint8_t modality;    // 0: no loss anywhere; otherwise written to label_modality wherever there is loss
};

// Where the batch goes: each points at packs * sequence_length elements, owned by the caller.
struct BatchBuffers {
  std::int64_t* tokens;
  std::int64_t* labels;
  float* loss_mask;
  std::int64_t* position_ids;
  std::uint8_t* label_modality;
};

// What is only known once the batch is laid out.
struct BatchIndex {
  std::vector<std::int32_t> cu_seqlens;   // 0, then the end of every segment, padding included
  std::vector<std::int64_t> image_slots;  // flat positions whose token is the image placeholder, ascending
  std::int64_t max_seqlen = 0;            // longest segment, padding included
};

struct BatchSpec {
  std::int64_t sequence_length;
  std::int64_t image_token_id;
  std::int64_t pad_id;
};

// Lays segments_per_pack[0] segments into pack 0, the next segments_per_pack[1] into pack 1, and so on; what is left
// of a pack becomes one segment of padding.  Throws std::invalid_argument, naming the pack and the segment, before
// anything would be written past a buffer's end.
BatchIndex assemble_packs(const std::vector<SegmentView>& segments, const std::vector<std::int64_t>& segments_per_pack,
                          const BatchSpec& spec, const BatchBuffers& out);

}  // namespace megatron_vlm
