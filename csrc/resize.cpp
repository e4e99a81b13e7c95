#include "resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "streaming.h"

namespace megatron_vlm {
namespace {

// A weight times a byte, summed over the support, stays inside of 32 bits with two bits to spare for overshoot.
constexpr int kPrecision = 32 - 8 - 2;
constexpr std::int32_t kHalf = 1 << (kPrecision - 1);
// Rows that go across at once, one beside another, so that the inner loop runs over neighbours in memory.
constexpr std::int64_t kRows = 16;
// Bytes of a row that go down at once: their sums stay in registers.
constexpr std::int64_t kBytes = 64;

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

// Of each output place: the first input place that it sees, how many, and their weights.
struct Taps {
  std::int64_t most;
  std::vector<std::int64_t> first, count;
  std::vector<std::int32_t> weights;  // [out, most]
};

Taps taps(std::int64_t in, float begin, float end, std::int64_t out) {
  const double scale = static_cast<double>(end - begin) / static_cast<double>(out);
  const double stretch = std::max(scale, 1.0);
  const double support = 2.0 * stretch;
  Taps made{static_cast<std::int64_t>(std::ceil(support)) * 2 + 1, {}, {}, {}};
  made.first.resize(out);
  made.count.resize(out);
  made.weights.assign(out * made.most, 0);
  std::vector<double> weights(made.most);
  for (std::int64_t place = 0; place < out; ++place) {
    const double centre = begin + (place + 0.5) * scale;
    const auto first = std::max<std::int64_t>(0, static_cast<std::int64_t>(centre - support + 0.5));
    const auto count = std::min(in, static_cast<std::int64_t>(centre + support + 0.5)) - first;
    double sum = 0.0;
    for (std::int64_t tap = 0; tap < count; ++tap) {
      weights[tap] = bicubic((tap + first - centre + 0.5) * (1.0 / stretch));
      sum += weights[tap];
    }
    for (std::int64_t tap = 0; tap < count; ++tap) {
      const double weight = (sum != 0.0 ? weights[tap] / sum : weights[tap]) * (1 << kPrecision);
      made.weights[place * made.most + tap] = static_cast<std::int32_t>(weight < 0.0 ? weight - 0.5 : weight + 0.5);
    }
    made.first[place] = first;
    made.count[place] = count;
  }
  return made;
}

inline std::uint8_t to_byte(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::min(255, std::max(0, sum >> kPrecision)));
}

// kBytes sums (or fewer) of `count` lines that lie `stride` bytes apart.
MEGATRON_VLM_CLONES void weigh_lines(std::uint8_t* out, const std::uint8_t* in, std::int64_t stride,
                                     const std::int32_t* weights, std::int64_t count, std::int64_t bytes) {
  std::int64_t at = 0;
  for (; at + kBytes <= bytes; at += kBytes) {
    std::int32_t sums[kBytes];
    for (std::int64_t i = 0; i < kBytes; ++i) sums[i] = kHalf;
    for (std::int64_t tap = 0; tap < count; ++tap) {
      const std::uint8_t* line = in + tap * stride + at;
      const std::int32_t weight = weights[tap];
      for (std::int64_t i = 0; i < kBytes; ++i) sums[i] += line[i] * weight;
    }
    for (std::int64_t i = 0; i < kBytes; ++i) out[at + i] = to_byte(sums[i]);
  }
  for (; at < bytes; ++at) {
    std::int32_t sum = kHalf;
    for (std::int64_t tap = 0; tap < count; ++tap) sum += in[tap * stride + at] * weights[tap];
    out[at] = to_byte(sum);
  }
}

// One block of rows across: `beside` is [width, channels, kRows], the result [out_width, channels, kRows].
template <std::int64_t kChannels>
MEGATRON_VLM_CLONES void weigh_columns(std::uint8_t* out, const std::uint8_t* beside, const Taps& across) {
  constexpr std::int64_t lanes = kChannels * kRows;
  const auto places = static_cast<std::int64_t>(across.first.size());
  for (std::int64_t place = 0; place < places; ++place) {
    std::int32_t sums[lanes];
    for (std::int64_t i = 0; i < lanes; ++i) sums[i] = kHalf;
    const std::uint8_t* from = beside + across.first[place] * lanes;
    const std::int32_t* weights = across.weights.data() + place * across.most;
    for (std::int64_t tap = 0; tap < across.count[place]; ++tap) {
      const std::int32_t weight = weights[tap];
      for (std::int64_t i = 0; i < lanes; ++i) sums[i] += from[tap * lanes + i] * weight;
    }
    for (std::int64_t i = 0; i < lanes; ++i) out[place * lanes + i] = to_byte(sums[i]);
  }
}

// Rows [begin, end) of the input, scaled across into `out`, uint8 [end - begin, out_width, channels].
template <std::int64_t kChannels>
void scale_across(std::uint8_t* out, const Resize& job, std::int64_t begin, std::int64_t end) {
  const Taps across = taps(job.width, job.box[0], job.box[2], job.out_width);
  const std::int64_t in_row = job.width * kChannels, out_row = job.out_width * kChannels;
  std::vector<std::uint8_t> beside(in_row * kRows), scaled(out_row * kRows);
  for (std::int64_t first = begin; first < end; first += kRows) {
    const std::int64_t rows = std::min(kRows, end - first);
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::uint8_t* from = job.in + (first + row) * in_row;
      for (std::int64_t i = 0; i < in_row; ++i) beside[i * kRows + row] = from[i];
    }
    weigh_columns<kChannels>(scaled.data(), beside.data(), across);
    for (std::int64_t row = 0; row < rows; ++row) {
      std::uint8_t* to = out + (first - begin + row) * out_row;
      for (std::int64_t i = 0; i < out_row; ++i) to[i] = scaled[i * kRows + row];
    }
  }
}

}  // namespace

void resize_bicubic(const Resize& job) {
  const float* box = job.box;
  const std::int64_t row = job.out_width * job.channels;
  const bool across = job.out_width != job.width || box[0] != 0.0F || box[2] != static_cast<float>(job.out_width);
  const bool down = job.out_height != job.height || box[1] != 0.0F || box[3] != static_cast<float>(job.out_height);
  if (!across && !down) {
    for (std::int64_t y = 0; y < job.height; ++y) std::memcpy(job.out + y * job.out_stride, job.in + y * row, row);
    return;
  }
  const Taps lines = taps(job.height, box[1], box[3], job.out_height);
  const std::int64_t begin = down ? lines.first.front() : 0;
  const std::int64_t end = down ? lines.first.back() + lines.count.back() : job.height;
  std::vector<std::uint8_t> scaled;
  const std::uint8_t* from;
  if (across) {
    scaled.resize((end - begin) * row);
    if (job.channels == 3) {
      scale_across<3>(scaled.data(), job, begin, end);
    } else {
      scale_across<1>(scaled.data(), job, begin, end);
    }
    from = scaled.data();
  } else {
    from = job.in + begin * row;
  }
  for (std::int64_t y = 0; y < job.out_height; ++y) {
    std::uint8_t* to = job.out + y * job.out_stride;
    if (down) {
      const std::int32_t* weights = lines.weights.data() + y * lines.most;
      weigh_lines(to, from + (lines.first[y] - begin) * row, row, weights, lines.count[y], row);
    } else {
      std::memcpy(to, from + y * row, row);
    }
  }
}

}  // namespace megatron_vlm
