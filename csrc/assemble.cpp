#include "assemble.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

namespace megatron_vlm {
namespace {

// The caller has checked its input and names mistakes better; this is what keeps memory safe whoever calls.
void check_fits(const SegmentView& segment, std::int64_t room, std::size_t pack, std::int64_t number) {
  const auto place = "pack " + std::to_string(pack) + ", segment " + std::to_string(number) + ": ";
  if (segment.length < 2) {
    throw std::invalid_argument(place + "has " + std::to_string(segment.length) + " ids, but needs at least 2");
  }
  if (segment.length - 1 > room) {
    throw std::invalid_argument(place + "has " + std::to_string(segment.length - 1) + " positions, but only " +
                                std::to_string(room) + " are left in the pack");
  }
}

void write_segment(const SegmentView& segment, std::int64_t start, const BatchSpec& spec, const BatchBuffers& out,
                   std::vector<std::int64_t>& image_slots) {
  const std::int64_t n = segment.length - 1;
  const std::int32_t* ids = segment.ids;
  // One short loop an output, each without a branch, is what compilers turn into vector code.
  for (std::int64_t i = 0; i < n; ++i) out.tokens[start + i] = ids[i];
  for (std::int64_t i = 0; i < n; ++i) {
    out.labels[start + i] = ids[i + 1] == spec.image_token_id ? spec.pad_id : ids[i + 1];
  }
  for (std::int64_t i = 0; i < n; ++i) out.position_ids[start + i] = i;

  const std::int64_t first_loss = segment.modality == 0 ? n : std::min(segment.loss_from, n);
  std::fill_n(out.loss_mask + start, first_loss, 0.0f);
  std::fill_n(out.label_modality + start, first_loss, std::uint8_t{0});
  for (std::int64_t i = first_loss; i < n; ++i) {
    out.loss_mask[start + i] = ids[i + 1] == spec.image_token_id ? 0.0f : 1.0f;
  }
  for (std::int64_t i = first_loss; i < n; ++i) {
    out.label_modality[start + i] = ids[i + 1] == spec.image_token_id ? std::uint8_t{0} : segment.modality;
  }

  for (std::int64_t i = 0; i < n; ++i) {
    if (ids[i] == spec.image_token_id) image_slots.push_back(start + i);
  }
}

void write_padding(std::int64_t start, std::int64_t n, const BatchSpec& spec, const BatchBuffers& out) {
  std::fill_n(out.tokens + start, n, spec.pad_id);
  std::fill_n(out.labels + start, n, spec.pad_id);
  std::fill_n(out.loss_mask + start, n, 0.0f);
  std::fill_n(out.label_modality + start, n, std::uint8_t{0});
  for (std::int64_t i = 0; i < n; ++i) out.position_ids[start + i] = i;
}

void check_spec(const std::vector<SegmentView>& segments, const std::vector<std::int64_t>& segments_per_pack,
                const BatchSpec& spec) {
  if (spec.sequence_length < 1) throw std::invalid_argument("sequence_length must be at least 1");
  // cu_seqlens holds 32-bit offsets, because attention kernels read them so.
  const auto most_packs = std::numeric_limits<std::int32_t>::max() / spec.sequence_length;
  if (static_cast<std::int64_t>(segments_per_pack.size()) > most_packs) {
    throw std::invalid_argument("the batch has more positions than cu_seqlens can count (2^31 - 1)");
  }
  std::int64_t left = static_cast<std::int64_t>(segments.size());
  for (const auto count : segments_per_pack) {
    if (count < 0 || count > left) throw std::invalid_argument("segments_per_pack does not add up to the segments");
    left -= count;
  }
  if (left != 0) throw std::invalid_argument("segments_per_pack does not add up to the segments");
  for (const auto& segment : segments) {
    if (segment.loss_from < 0) throw std::invalid_argument("loss_from is negative");
  }
}

}  // namespace

BatchIndex assemble_packs(const std::vector<SegmentView>& segments, const std::vector<std::int64_t>& segments_per_pack,
                          const BatchSpec& spec, const BatchBuffers& out) {
  check_spec(segments, segments_per_pack, spec);
  BatchIndex index;
  index.cu_seqlens.reserve(segments.size() + segments_per_pack.size() + 1);
  index.cu_seqlens.push_back(0);
  const auto close_segment = [&index](std::int64_t end) {
    index.max_seqlen = std::max(index.max_seqlen, end - index.cu_seqlens.back());
    index.cu_seqlens.push_back(static_cast<std::int32_t>(end));
  };

  std::size_t next = 0;
  for (std::size_t pack = 0; pack < segments_per_pack.size(); ++pack) {
    std::int64_t at = static_cast<std::int64_t>(pack) * spec.sequence_length;
    const std::int64_t end = at + spec.sequence_length;
    for (std::int64_t number = 0; number < segments_per_pack[pack]; ++number, ++next) {
      const SegmentView& segment = segments[next];
      check_fits(segment, end - at, pack, number);
      write_segment(segment, at, spec, out, index.image_slots);
      at += segment.length - 1;
      close_segment(at);
    }
    if (at < end) {
      write_padding(at, end - at, spec, out);
      close_segment(end);
    }
  }
  return index;
}

}  // namespace megatron_vlm
