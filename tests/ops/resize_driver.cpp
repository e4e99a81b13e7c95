// Scales random pictures and parts of them between buffers that are exactly as long as they must be. Prints their number, and
// that of bytes beside the result, which have to stay as they were.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

#include "resize.h"

namespace {

std::mt19937 generator(1);
std::int64_t side(std::int64_t most) { return 1 + static_cast<std::int64_t>(generator() % static_cast<unsigned>(most)); }
float share() { return static_cast<float>(generator() % 1001U) / 1000.0F; }

}  // namespace

int main() {
  std::int64_t pictures = 0, beside = 0;
  for (int run = 0; run < 1500; ++run) {
    const std::int64_t most = run % 50 == 0 ? 400 : 40, channels = run % 2 ? 3 : 1, gap = run % 3;
    megatron_vlm::Resize job{};
    job.height = side(most);
    job.width = side(most);
    job.channels = channels;
    job.out_height = run % 7 == 0 ? job.height : side(most);
    job.out_width = run % 5 == 0 ? job.width : side(most);
    job.out_stride = job.out_width * channels + gap;
    job.box[2] = static_cast<float>(job.width);
    job.box[3] = static_cast<float>(job.height);
    if (run % 4 == 0) {
      job.box[0] = share() * 0.9F * job.box[2];
      job.box[1] = share() * 0.9F * job.box[3];
      job.box[2] = std::min(job.box[2], job.box[0] + 0.1F + share() * job.box[2]);
      job.box[3] = std::min(job.box[3], job.box[1] + 0.1F + share() * job.box[3]);
    }
    const auto in_bytes = static_cast<std::size_t>(job.height * job.width * channels);
    const auto out_bytes = static_cast<std::size_t>(job.out_height * job.out_stride - gap);
    std::unique_ptr<std::uint8_t[]> in(new std::uint8_t[in_bytes]), out(new std::uint8_t[out_bytes]);
    for (std::size_t i = 0; i < in_bytes; ++i) in[i] = generator() % 3 ? 255 : 0;
    std::fill_n(out.get(), out_bytes, std::uint8_t{77});
    job.in = in.get();
    job.out = out.get();
    resize_bicubic(job);
    for (std::size_t i = 0; i < out_bytes; ++i) {
      if (static_cast<std::int64_t>(i) % job.out_stride < job.out_width * channels) continue;
      if (out[i] != 77) return EXIT_FAILURE;
      ++beside;
    }
    ++pictures;
  }
  std::printf("%lld %lld\n", static_cast<long long>(pictures), static_cast<long long>(beside));
}
