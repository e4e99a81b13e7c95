// bfloat16 and half precision on processors and compilers that know neither.  Rounding is to nearest, ties to even, and a
// NaN stays one: what torch does.
#pragma once

#include <cstdint>
#include <cstring>

namespace megatron_vlm {

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

struct BFloat16 {
  std::uint16_t bits;

  static BFloat16 from(float value) {
    const std::uint32_t wide = bits_of(value);
    const std::uint32_t rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
    // without a branch, so that loops over rows become vector code
    const bool nan = (wide & 0x7fffffffu) > 0x7f800000u;
    return {static_cast<std::uint16_t>(nan ? 0x7fc0u : rounded)};
  }
  float wide() const { return float_of(static_cast<std::uint32_t>(bits) << 16); }
};

struct Half {
  std::uint16_t bits;

  static Half from(float value) {
    const std::uint32_t wide = bits_of(value);
    const std::uint16_t sign = static_cast<std::uint16_t>((wide >> 16) & 0x8000u);
    const std::uint32_t magnitude = wide & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};
    if (magnitude >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};  // 65520 and more round to infinity
    if (magnitude < 0x38800000u) {
      // below the least normal half: adding 0.5 lets the processor round at the right bit
      const float shifted = float_of(magnitude) + 0.5f;
      return {static_cast<std::uint16_t>(sign | (bits_of(shifted) - 0x3f000000u))};
    }
    const std::uint32_t rounded = magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u);
    return {static_cast<std::uint16_t>(sign | (rounded >> 13))};
  }
  float wide() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
    const std::uint32_t magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    if (magnitude < 0x400u) {  // subnormal: magnitude * 2^-24, exact in single precision
      const float value = static_cast<float>(magnitude) * float_of(0x33800000u);
      return float_of(sign | bits_of(value));
    }
    return float_of(sign | ((magnitude << 13) + (112u << 23)));
  }
};

// The type in which numbers of T are summed, and the way there and back.
template <typename T>
struct Wide {
  using type = float;
  static float of(T value) { return value.wide(); }
  static T narrow(float value) { return T::from(value); }
};
template <>
struct Wide<float> {
  using type = float;
  static float of(float value) { return value; }
  static float narrow(float value) { return value; }
};
template <>
struct Wide<double> {
  using type = double;
  static double of(double value) { return value; }
  static double narrow(double value) { return value; }
};

}  // namespace megatron_vlm
