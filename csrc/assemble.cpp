#include "assemble.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "streaming.h"

namespace megatron_vlm {
namespace {

template <typename T>
T load(const unsigned char* at) {  // the file format aligns nothing
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

struct Extremes {
  std::int64_t least, most;
  bool placeholder;
};

template <typename T>
MEGATRON_VLM_CLONES void widen(const unsigned char* from, std::int64_t n, std::int64_t* to) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = load<T>(from + i * static_cast<std::int64_t>(sizeof(T)));
}

template <typename T>
MEGATRON_VLM_CLONES Extremes extremes(const unsigned char* from, std::int64_t n, std::int64_t image_token_id) {
  T least = load<T>(from), most = least;
  const T image = static_cast<T>(image_token_id);
  T found = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const T id = load<T>(from + i * static_cast<std::int64_t>(sizeof(T)));
    least = id < least ? id : least;
    most = id > most ? id : most;
    found |= static_cast<T>(id == image);
  }
  return {static_cast<std::int64_t>(least), static_cast<std::int64_t>(most),
          found != 0 && static_cast<std::int64_t>(image) == image_token_id};
}

// Calls body with a value of the piece's element type.
template <typename Body>
auto with_type(IdType type, const Body& body) {
  switch (type) {
    case IdType::kUint8: return body(std::uint8_t{});
    case IdType::kInt8: return body(std::int8_t{});
    case IdType::kInt16: return body(std::int16_t{});
    case IdType::kUint16: return body(std::uint16_t{});
    case IdType::kInt64: return body(std::int64_t{});
    default: return body(std::int32_t{});
  }
}

// The first id of a text piece that is outside the vocabulary or an image placeholder.
bool find_fault(const Piece& piece, const BatchSpec& spec, std::int64_t* id) {
  if (!piece.is_text || piece.count == 0 || spec.vocab_size == 0) return false;
  return with_type(piece.type, [&](auto zero) {
    using T = decltype(zero);
    const auto* from = static_cast<const unsigned char*>(piece.ids);
    const Extremes found = extremes<T>(from, piece.count, spec.image_token_id);
    if (found.least >= 0 && found.most < spec.vocab_size && !found.placeholder) return false;
    *id = found.least < 0 ? found.least : found.most >= spec.vocab_size ? found.most : spec.image_token_id;
    return true;
  });
}

// Ids [offset, offset + n) of a piece.
void write_ids(const Piece& piece, std::int64_t offset, std::int64_t n, std::int64_t* to) {
  if (piece.ids == nullptr) {
    std::fill_n(to, n, piece.repeated);
    return;
  }
  const auto* from = static_cast<const unsigned char*>(piece.ids);
  with_type(piece.type, [&](auto zero) {
    using T = decltype(zero);
    widen<T>(from + offset * static_cast<std::int64_t>(sizeof(T)), n, to);
  });
}

// One short loop an output, each without a branch, is what compilers turn into vector code.
MEGATRON_VLM_CLONES void write_labels(const std::int64_t* following, std::int64_t n, std::uint8_t modality,
                                      const BatchSpec& spec, std::int64_t* labels, float* loss_mask,
                                      std::uint8_t* label_modality) {
  const std::int64_t image = spec.image_token_id, pad = spec.pad_id;
  for (std::int64_t i = 0; i < n; ++i) labels[i] = following[i] == image ? pad : following[i];
  const float learnt = modality == 0 ? 0.0f : 1.0f;
  for (std::int64_t i = 0; i < n; ++i) loss_mask[i] = following[i] == image ? 0.0f : learnt;
  for (std::int64_t i = 0; i < n; ++i) label_modality[i] = following[i] == image ? std::uint8_t{0} : modality;
}

MEGATRON_VLM_CLONES void count_up(std::int64_t* to, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = i;
}

MEGATRON_VLM_CLONES std::int64_t count_equal(const std::int64_t* ids, std::int64_t n, std::int64_t id) {
  std::int64_t found = 0;
  for (std::int64_t i = 0; i < n; ++i) found += ids[i] == id;
  return found;
}

// Numbers the placeholders of some positions; most stretches of positions hold none or nothing else.
std::int64_t number_rows(const std::int64_t* tokens, std::int64_t n, std::uint8_t text, std::int64_t image,
                         std::int64_t next, std::int32_t* row_index, std::uint8_t* token_modality) {
  constexpr std::int64_t kStretch = 64;
  for (std::int64_t at = 0; at < n; at += kStretch) {
    const std::int64_t count = std::min(kStretch, n - at);
    const std::int64_t rows = count_equal(tokens + at, count, image);
    if (rows == 0) {
      std::fill_n(row_index + at, count, -1);
      std::fill_n(token_modality + at, count, text);
    } else if (rows == count) {
      for (std::int64_t i = 0; i < count; ++i) row_index[at + i] = static_cast<std::int32_t>(next + i);
      std::fill_n(token_modality + at, count, kImage);
    } else {
      std::int64_t row = next;
      for (std::int64_t i = at; i < at + count; ++i) {
        const bool is_row = tokens[i] == image;
        row_index[i] = is_row ? static_cast<std::int32_t>(row) : -1;
        token_modality[i] = is_row ? kImage : text;
        row += is_row;
      }
    }
    next += rows;
  }
  return next;
}

class Writer {
 public:
  Writer(const Segments& segments, const BatchSpec& spec, const BatchBuffers& out)
      : segments_(segments), spec_(spec), out_(out) {
    index_.cu_seqlens.reserve(segments.views.size() + segments.per_pack.size() + 1);
    index_.cu_seqlens.push_back(0);
  }

  void segment(std::size_t number, std::int64_t start) {
    const SegmentView& view = segments_.views[number];
    const std::int64_t n = view.length - 1;
    std::int64_t* tokens = out_.tokens + start;
    std::int64_t last = 0, at = 0;  // `last` is ids[n], which is a label only
    for (std::size_t i = view.first_piece; i < view.first_piece + view.pieces; ++i) {
      const Piece& piece = segments_.pieces[i];
      const std::int64_t inside = std::min(piece.count, n - at);
      if (inside > 0) write_ids(piece, 0, inside, tokens + at);
      if (inside < piece.count) write_ids(piece, piece.count - 1, 1, &last);
      std::int64_t id;
      if (index_.fault.segment < 0 && find_fault(piece, spec_, &id)) {
        index_.fault = {static_cast<std::int64_t>(number), id};
      }
      at += piece.count;
    }
    write_labels(tokens + 1, n - 1, view.modality, spec_, out_.labels + start, out_.loss_mask + start,
                 out_.label_modality + start);
    const std::int64_t end = start + n - 1;
    write_labels(&last, 1, view.modality, spec_, out_.labels + end, out_.loss_mask + end, out_.label_modality + end);
    unlearn(start, 0, std::min(view.loss_from, n));
    for (std::size_t i = view.first_masked; i < view.first_masked + view.masked; ++i) {
      // id j is the label of position j - 1
      const IdRange range = segments_.masked[i];
      unlearn(start, std::clamp<std::int64_t>(range.begin - 1, 0, n), std::clamp<std::int64_t>(range.end - 1, 0, n));
    }
    count_up(out_.position_ids + start, n);
    index_.image_rows = number_rows(tokens, n, view.modality == 0 ? kText : view.modality, spec_.image_token_id,
                                    index_.image_rows, out_.row_index + start, out_.token_modality + start);
    close(start + n);
  }

  void padding(std::int64_t start, std::int64_t n) {
    std::fill_n(out_.tokens + start, n, spec_.pad_id);
    std::fill_n(out_.labels + start, n, spec_.pad_id);
    unlearn(start, 0, n);
    count_up(out_.position_ids + start, n);
    std::fill_n(out_.token_modality + start, n, std::uint8_t{0});
    std::fill_n(out_.row_index + start, n, -1);
    close(start + n);
  }

  BatchIndex take() { return std::move(index_); }

 private:
  void unlearn(std::int64_t start, std::int64_t begin, std::int64_t end) {
    if (begin >= end) return;
    std::fill_n(out_.loss_mask + start + begin, end - begin, 0.0f);
    std::fill_n(out_.label_modality + start + begin, end - begin, std::uint8_t{0});
  }

  void close(std::int64_t end) {
    index_.max_seqlen = std::max(index_.max_seqlen, end - index_.cu_seqlens.back());
    index_.cu_seqlens.push_back(static_cast<std::int32_t>(end));
  }

  const Segments& segments_;
  const BatchSpec& spec_;
  const BatchBuffers& out_;
  BatchIndex index_;
};

// The caller has checked its input and names mistakes better; this is what keeps memory safe whoever calls.
void check_fits(const Segments& segments, std::size_t number, std::int64_t room, std::size_t pack, std::int64_t in_pack) {
  const SegmentView& view = segments.views[number];
  const auto place = "pack " + std::to_string(pack) + ", segment " + std::to_string(in_pack) + ": ";
  if (view.length < 2) {
    throw std::invalid_argument(place + "has " + std::to_string(view.length) + " ids, but needs at least 2");
  }
  if (view.length - 1 > room) {
    throw std::invalid_argument(place + "has " + std::to_string(view.length - 1) + " positions, but only " +
                                std::to_string(room) + " are left in the pack");
  }
  std::int64_t ids = 0;
  for (std::size_t i = view.first_piece; i < view.first_piece + view.pieces; ++i) ids += segments.pieces[i].count;
  if (ids != view.length) throw std::invalid_argument(place + "its pieces do not have as many ids as it has");
  if (view.loss_from < 0) throw std::invalid_argument(place + "loss_from is negative");
}

void check_spec(const Segments& segments, const BatchSpec& spec) {
  if (spec.sequence_length < 1) throw std::invalid_argument("sequence_length must be at least 1");
  // cu_seqlens holds 32-bit offsets, because attention kernels read them so.
  const auto most_packs = std::numeric_limits<std::int32_t>::max() / spec.sequence_length;
  if (static_cast<std::int64_t>(segments.per_pack.size()) > most_packs) {
    throw std::invalid_argument("the batch has more positions than cu_seqlens can count (2^31 - 1)");
  }
  std::int64_t left = static_cast<std::int64_t>(segments.views.size());
  for (const auto count : segments.per_pack) {
    if (count < 0 || count > left) throw std::invalid_argument("segments_per_pack does not add up to the segments");
    left -= count;
  }
  if (left != 0) throw std::invalid_argument("segments_per_pack does not add up to the segments");
}

}  // namespace

std::int64_t id_size(IdType type) {
  switch (type) {
    case IdType::kUint8:
    case IdType::kInt8: return 1;
    case IdType::kInt16:
    case IdType::kUint16: return 2;
    case IdType::kInt32: return 4;
    case IdType::kInt64: return 8;
    default: return 0;
  }
}

BatchIndex assemble_packs(const Segments& segments, const BatchSpec& spec, const BatchBuffers& out) {
  check_spec(segments, spec);
  Writer write(segments, spec, out);
  std::size_t next = 0;
  for (std::size_t pack = 0; pack < segments.per_pack.size(); ++pack) {
    std::int64_t at = static_cast<std::int64_t>(pack) * spec.sequence_length;
    const std::int64_t end = at + spec.sequence_length;
    for (std::int64_t number = 0; number < segments.per_pack[pack]; ++number, ++next) {
      check_fits(segments, next, end - at, pack, number);
      write.segment(next, at);
      at += segments.views[next].length - 1;
    }
    if (at < end) write.padding(at, end - at);
  }
  return write.take();
}

}  // namespace megatron_vlm
