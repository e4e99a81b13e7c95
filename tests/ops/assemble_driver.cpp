// Runs megatron_vlm::assemble_packs on many small random batches whose buffers are exactly as long as they must be, so
// that a sanitizer sees any access beside them, and on batches that must be refused.  Prints the number of each.
#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "assemble.h"

int main() {
  using namespace megatron_vlm;
  std::mt19937 random(1);
  const auto below = [&random](int bound) { return static_cast<std::int64_t>(random() % bound); };
  int done = 0;
  int refused = 0;
  for (int round = 0; round < 2000; ++round) {
    const BatchSpec spec{1 + below(40), 9, -1 - below(3)};
    std::vector<std::unique_ptr<std::int32_t[]>> owned;
    std::vector<SegmentView> segments;
    std::vector<std::int64_t> per_pack;
    const auto packs = below(4);
    for (std::int64_t pack = 0; pack < packs; ++pack) {
      const auto count = below(4);
      for (std::int64_t i = 0; i < count; ++i) {
        const auto length = below(20);  // sometimes too short, sometimes too long for its pack
        owned.emplace_back(new std::int32_t[length]);
        for (std::int64_t j = 0; j < length; ++j) owned.back()[j] = static_cast<std::int32_t>(below(12));
        segments.push_back({owned.back().get(), length, below(30) - 1, static_cast<std::uint8_t>(below(3))});
      }
      per_pack.push_back(count);
    }
    if (below(50) == 0) per_pack.push_back(below(5) - 2);
    const auto size = per_pack.size() * static_cast<std::size_t>(spec.sequence_length);
    std::unique_ptr<std::int64_t[]> tokens(new std::int64_t[size]);
    std::unique_ptr<std::int64_t[]> labels(new std::int64_t[size]);
    std::unique_ptr<float[]> loss_mask(new float[size]);
    std::unique_ptr<std::int64_t[]> position_ids(new std::int64_t[size]);
    std::unique_ptr<std::uint8_t[]> label_modality(new std::uint8_t[size]);
    try {
      const auto index = assemble_packs(
          segments, per_pack, spec,
          {tokens.get(), labels.get(), loss_mask.get(), position_ids.get(), label_modality.get()});
      if (index.cu_seqlens.back() != static_cast<std::int64_t>(size)) return 1;
      for (const auto slot : index.image_slots) {
        if (tokens[slot] != spec.image_token_id) return 1;
      }
      ++done;
    } catch (const std::invalid_argument&) {
      ++refused;
    }
  }
  std::printf("%d %d\n", done, refused);
  return 0;
}
