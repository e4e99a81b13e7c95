// The four element types: how they are stored, widened to what sums are taken in, and rounded to nearest even.
#pragma once

#include "kernels.h"
#include "portable.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace mvlm {

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// What a sum of T is taken in.
template <typename T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <typename T>
using Wide = typename WideOf<T>::type;

template <typename To, typename From>
MVLM_DEVICE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bits_as keeps the size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

MVLM_DEVICE float widen(float x) { return x; }
MVLM_DEVICE double widen(double x) { return x; }
MVLM_DEVICE float widen(Bfloat16 x) { return bits_as<float>(static_cast<uint32_t>(x.bits) << 16); }

MVLM_DEVICE float widen(Float16 x) {
#ifdef __CUDACC__
  return __half2float(__ushort_as_half(x.bits));
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t exponent = (x.bits >> 10) & 31u, fraction = x.bits & 1023u;
  if (exponent == 31) return bits_as<float>(sign | 0x7f800000u | fraction << 13);
  if (exponent != 0) return bits_as<float>(sign | (exponent + 112) << 23 | fraction << 13);
  const float tiny = static_cast<float>(fraction) * 0x1p-24f;  // exact
  return sign ? -tiny : tiny;
#endif
}

MVLM_DEVICE void narrow(float x, float& to) { to = x; }
MVLM_DEVICE void narrow(float x, double& to) { to = x; }
MVLM_DEVICE void narrow(double x, double& to) { to = x; }

MVLM_DEVICE void narrow(float x, Bfloat16& to) {
#ifdef __CUDACC__
  to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
  const uint32_t bits = bits_as<uint32_t>(x);
  const bool is_nan = x != x;
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;  // a carry into the exponent is right
  to.bits = static_cast<uint16_t>(is_nan ? 0x7fffu : rounded);
#endif
}

MVLM_DEVICE void narrow(float x, Float16& to) {
#ifdef __CUDACC__
  to.bits = __half_as_ushort(__float2half_rn(x));
#else
  const uint32_t bits = bits_as<uint32_t>(x), magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7fffu;
  } else if (magnitude >= 0x477ff000u) {  // 65520: halfway between the greatest number and what would follow
    half = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // 2^-14: normal
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  } else {
    // Adding 0.5 leaves the multiple of 2^-24 in the lowest bits, rounded by the addition.
    half = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
  }
  to.bits = static_cast<uint16_t>((magnitude > 0x7f800000u ? 0u : bits >> 16 & 0x8000u) | half);
#endif
}

inline int size_of(int dtype) {
  switch (dtype) {
    case MVLM_FLOAT32: return 4;
    case MVLM_BFLOAT16: return 2;
    case MVLM_FLOAT16: return 2;
    case MVLM_FLOAT64: return 8;
  }
  return 0;
}

}  // namespace mvlm
