// One patch at a time with AVX2, FMA and F16C, for processors that have them: sixteen pixels a step.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define MEGATRON_VLM_HAS_AVX2_PATCHES 1

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "half.h"

#define MEGATRON_VLM_AVX2 __attribute__((target("avx2,fma,f16c"), always_inline)) inline

namespace megatron_vlm::avx2 {

inline bool available() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

// x -> (x - mean) / std without a division, which would cost more than all the rest: a product with the reciprocal, and one
// step of Newton's method on the remainder.  It gives the correctly rounded quotient for nearly all mean and std; the caller
// compares all 256 values with the division first.
struct Channel {
  float mean, std, reciprocal;
  float shift;  // -mean / std
};

// How the quotient is found: Exact as above, Short for bfloat16 by one multiply-add and rounding halves up. Short is nearly
// always right too, since no quotient of a byte lies near the middle of two bfloat16; the caller compares here as well.
struct Exact {};
struct Short {};

MEGATRON_VLM_AVX2 __m256 normalised(__m128i bytes, const Channel& channel) {
  const __m256 x = _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)), _mm256_set1_ps(channel.mean));
  const __m256 reciprocal = _mm256_set1_ps(channel.reciprocal);
  const __m256 quotient = _mm256_mul_ps(x, reciprocal);
  const __m256 remainder = _mm256_fnmadd_ps(quotient, _mm256_set1_ps(channel.std), x);
  return _mm256_fmadd_ps(remainder, reciprocal, quotient);
}

MEGATRON_VLM_AVX2 void store(float* to, __m256 low, __m256 high) {
  _mm256_storeu_ps(to, low);
  _mm256_storeu_ps(to + 8, high);
}

MEGATRON_VLM_AVX2 __m256i rounded_to_bfloat16(__m256 value) {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
}

MEGATRON_VLM_AVX2 void store(BFloat16* to, __m256 low, __m256 high) {
  const __m256i packed = _mm256_packus_epi32(rounded_to_bfloat16(low), rounded_to_bfloat16(high));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(packed, 0xd8));
}

MEGATRON_VLM_AVX2 void store(Half* to, __m256 low, __m256 high) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 8), _mm256_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT));
}

template <typename T>
MEGATRON_VLM_AVX2 void store_channel(T* to, __m128i bytes, const Channel& channel, Exact) {
  store(to, normalised(bytes, channel), normalised(_mm_srli_si128(bytes, 8), channel));
}

// Even and odd bytes go through lanes of their own, whose upper halves are then laid between each other.
MEGATRON_VLM_AVX2 void store_channel(BFloat16* to, __m128i bytes, const Channel& channel, Short) {
  const __m256i pairs = _mm256_cvtepu16_epi32(bytes);
  const __m256 scale = _mm256_set1_ps(channel.reciprocal), shift = _mm256_set1_ps(channel.shift);
  const __m256 even = _mm256_cvtepi32_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(0xff)));
  const __m256 odd = _mm256_cvtepi32_ps(_mm256_srli_epi32(pairs, 8));
  const __m256i half = _mm256_set1_epi32(0x8000);
  const __m256i low = _mm256_add_epi32(_mm256_castps_si256(_mm256_fmadd_ps(even, scale, shift)), half);
  const __m256i high = _mm256_add_epi32(_mm256_castps_si256(_mm256_fmadd_ps(odd, scale, shift)), half);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_blend_epi16(_mm256_srli_epi32(low, 16), high, 0xaa));
}

// Sixteen pixels, 48 bytes, into sixteen values of each channel.
template <typename Way, typename T>
MEGATRON_VLM_AVX2 void store_pixels(const std::uint8_t* pixels, const Channel (&channels)[3], T* red, T* green, T* blue) {
  const auto* from = reinterpret_cast<const __m128i*>(pixels);
  const __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1), c = _mm_loadu_si128(from + 2);
  const auto gather = [&](__m128i of_a, __m128i of_b, __m128i of_c) __attribute__((target("avx2,fma,f16c"), always_inline)) {
    return _mm_or_si128(_mm_shuffle_epi8(a, of_a), _mm_or_si128(_mm_shuffle_epi8(b, of_b), _mm_shuffle_epi8(c, of_c)));
  };
  constexpr char o = -1;  // gives zero
  const __m128i r = gather(_mm_setr_epi8(0, 3, 6, 9, 12, 15, o, o, o, o, o, o, o, o, o, o),
                           _mm_setr_epi8(o, o, o, o, o, o, 2, 5, 8, 11, 14, o, o, o, o, o),
                           _mm_setr_epi8(o, o, o, o, o, o, o, o, o, o, o, 1, 4, 7, 10, 13));
  const __m128i g = gather(_mm_setr_epi8(1, 4, 7, 10, 13, o, o, o, o, o, o, o, o, o, o, o),
                           _mm_setr_epi8(o, o, o, o, o, 0, 3, 6, 9, 12, 15, o, o, o, o, o),
                           _mm_setr_epi8(o, o, o, o, o, o, o, o, o, o, o, 2, 5, 8, 11, 14));
  const __m128i l = gather(_mm_setr_epi8(2, 5, 8, 11, 14, o, o, o, o, o, o, o, o, o, o, o),
                           _mm_setr_epi8(o, o, o, o, o, 1, 4, 7, 10, 13, o, o, o, o, o, o),
                           _mm_setr_epi8(o, o, o, o, o, o, o, o, o, o, 0, 3, 6, 9, 12, 15));
  store_channel(red, r, channels[0], Way());
  store_channel(green, g, channels[1], Way());
  store_channel(blue, l, channels[2], Way());
}

// A patch of size x size pixels into its three planes.  Steps of sixteen go past a row's end where what they write there is
// written again by a later row, and where what they read there is still inside the pixels; elsewhere they take a detour.
template <typename Way, typename T>
__attribute__((target("avx2,fma,f16c"))) void lay_patch(T* patch, const std::uint8_t* corner, std::int64_t stride,
                                                        std::int64_t size, const Channel (&channels)[3],
                                                        const std::uint8_t* pixels_end) {
  const std::int64_t plane = size * size;
  for (std::int64_t y = 0; y < size; ++y, corner += stride) {
    __builtin_prefetch(corner + size * stride);  // the patch below: pictures are read in strips that no prefetcher follows
    for (std::int64_t x = 0; x < size; x += 16) {
      const std::uint8_t* pixels = corner + 3 * x;
      T* red = patch + y * size + x;
      if (y * size + x + 16 <= plane && pixels + 48 <= pixels_end) {
        store_pixels<Way>(pixels, channels, red, red + plane, red + 2 * plane);
        continue;
      }
      const std::int64_t wanted = size - x < 16 ? size - x : 16;
      std::uint8_t some[48] = {};
      std::memcpy(some, pixels, static_cast<std::size_t>(3 * wanted));
      T values[3][16];
      store_pixels<Way>(some, channels, values[0], values[1], values[2]);
      for (int channel = 0; channel < 3; ++channel) {
        std::memcpy(red + channel * plane, values[channel], static_cast<std::size_t>(wanted) * sizeof(T));
      }
    }
  }
}

// Whether a way gives what the division gives, `table`, for every byte.
template <typename Way, typename T>
__attribute__((target("avx2,fma,f16c"))) bool agrees(const Channel& channel, const T (&table)[256]) {
  for (int value = 0; value < 256; value += 16) {
    std::uint8_t bytes[16];
    for (int i = 0; i < 16; ++i) bytes[i] = static_cast<std::uint8_t>(value + i);
    T values[16];
    store_channel(values, _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)), channel, Way());
    if (std::memcmp(values, table + value, sizeof values) != 0) return false;
  }
  return true;
}

}  // namespace megatron_vlm::avx2

#endif
