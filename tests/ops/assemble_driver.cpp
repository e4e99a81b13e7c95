// Runs megatron_vlm::assemble_packs on many small random batches whose buffers and ids are exactly as long as they must be,
// so that a sanitizer sees any access beside them, and on batches that must be refused.  Half of them are spans of random
// indexed datasets.  Prints the number of each.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "assemble.h"
#include "indexed_source.h"

namespace {

using namespace megatron_vlm;

std::mt19937 generator(1);
std::int64_t below(std::int64_t bound) { return static_cast<std::int64_t>(generator() % static_cast<unsigned>(bound)); }

using Bytes = std::unique_ptr<unsigned char[]>;

// Exactly `count` random ids of a type, at an odd address where `shift` is 1.
Bytes ids_of(IdType type, std::int64_t count, std::int64_t shift, std::int64_t bound) {
  Bytes bytes(new unsigned char[static_cast<std::size_t>(count * id_size(type) + shift)]);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t id = below(bound);  // little-endian: the low bytes are the id
    std::memcpy(bytes.get() + shift + i * id_size(type), &id, static_cast<std::size_t>(id_size(type)));
  }
  return bytes;
}

IdType some_type() {
  constexpr IdType types[] = {IdType::kUint8, IdType::kInt8, IdType::kInt16, IdType::kInt32, IdType::kInt64, IdType::kUint16};
  return types[below(6)];
}

// A dataset of a few documents in buffers without a byte to spare.
struct Dataset {
  Bytes data, lengths, pointers, documents, modes, facts;
  IndexedSource view;

  Dataset() {
    const std::int64_t sequences = below(6), count = 1 + below(4);
    const IdType type = some_type();
    std::vector<std::int64_t> at(1, 0);
    lengths.reset(new unsigned char[static_cast<std::size_t>(4 * sequences)]);
    pointers.reset(new unsigned char[static_cast<std::size_t>(8 * sequences)]);
    modes.reset(new unsigned char[static_cast<std::size_t>(sequences)]);
    documents.reset(new unsigned char[static_cast<std::size_t>(8 * (count + 1))]);
    facts.reset(new unsigned char[static_cast<std::size_t>(8 * sequences)]);
    std::int64_t elements = 0;
    for (std::int64_t i = 0; i < sequences; ++i) {
      const auto length = static_cast<std::int32_t>(below(9));
      const std::int64_t pointer = below(60) == 0 ? elements * id_size(type) + 3 : elements * id_size(type);
      std::memcpy(lengths.get() + 4 * i, &length, 4);
      std::memcpy(pointers.get() + 8 * i, &pointer, 8);
      modes[static_cast<std::size_t>(i)] = below(3) == 0;
      const std::int32_t known[2] = {static_cast<std::int32_t>(below(2)), 0};
      std::memcpy(facts.get() + 8 * i, known, 8);
      elements += length;
    }
    data = ids_of(type, elements, 0, 12);
    std::int64_t border = 0;
    for (std::int64_t i = 0; i <= count; ++i) {
      std::memcpy(documents.get() + 8 * i, &border, 8);
      border = i + 1 == count ? sequences : border + below(sequences - border + 1);
    }
    view = {data.get(), elements * id_size(type), type, lengths.get(), pointers.get(), documents.get(), modes.get(),
            below(2) ? facts.get() : nullptr, sequences, count, 1 + below(5)};
  }
};

}  // namespace

int main() {
  int done = 0;
  int refused = 0;
  for (int round = 0; round < 4000; ++round) {
    const BatchSpec spec{1 + below(40), 9, -1 - below(3), below(2) * 11};
    std::vector<Bytes> owned;
    std::vector<std::unique_ptr<Dataset>> datasets;
    std::vector<IndexedSource> sources;
    std::vector<PicturePlace> pictures;
    Segments segments;
    const bool spans = round % 2 == 1;
    for (int i = 0; spans && i < 2; ++i) {
      datasets.push_back(std::make_unique<Dataset>());
      sources.push_back(datasets.back()->view);
    }
    try {
      const auto packs = below(4);
      for (std::int64_t pack = 0; pack < packs; ++pack) {
        const auto count = below(4);
        for (std::int64_t i = 0; i < count; ++i) {
          if (spans) {
            append_span(sources, {below(2), below(4), below(4), 1 + below(6)}, 9, 0, segments, pictures);
            continue;
          }
          const auto length = below(20);  // sometimes too short, sometimes too long for its pack
          const IdType type = some_type();
          const auto shift = below(2);
          const auto split = length > 0 ? below(length) : 0;
          owned.push_back(ids_of(type, length, shift, 12));
          const unsigned char* ids = owned.back().get() + shift;
          segments.views.push_back({segments.pieces.size(), 2, length, below(30) - 1, segments.masked.size(),
                                    1, static_cast<std::uint8_t>(below(3))});
          segments.masked.push_back({below(25) - 3, below(25)});
          segments.pieces.push_back({ids, split, 0, type, true});
          segments.pieces.push_back({ids + split * id_size(type), length - split, 0, type, below(2) == 0});
        }
        segments.per_pack.push_back(count);
      }
      if (below(50) == 0) segments.per_pack.push_back(below(5) - 2);
      const auto size = segments.per_pack.size() * static_cast<std::size_t>(spec.sequence_length);
      std::unique_ptr<std::int64_t[]> tokens(new std::int64_t[size]);
      std::unique_ptr<std::int64_t[]> labels(new std::int64_t[size]);
      std::unique_ptr<float[]> loss_mask(new float[size]);
      std::unique_ptr<std::int64_t[]> position_ids(new std::int64_t[size]);
      std::unique_ptr<std::uint8_t[]> label_modality(new std::uint8_t[size]);
      std::unique_ptr<std::uint8_t[]> token_modality(new std::uint8_t[size]);
      std::unique_ptr<std::int32_t[]> row_index(new std::int32_t[size]);
      const auto index = assemble_packs(segments, spec,
                                        {tokens.get(), labels.get(), loss_mask.get(), position_ids.get(),
                                         label_modality.get(), token_modality.get(), row_index.get()});
      if (index.cu_seqlens.back() != static_cast<std::int64_t>(size)) return 1;
      std::int64_t rows = 0;
      for (std::size_t i = 0; i < size; ++i) {
        if (row_index[i] != (tokens[i] == spec.image_token_id ? rows : -1)) return 1;
        rows += tokens[i] == spec.image_token_id;
      }
      if (rows != index.image_rows) return 1;
      ++done;
    } catch (const std::invalid_argument&) {
      ++refused;
    }
  }
  std::printf("%d %d\n", done, refused);
  return 0;
}
