// Copies of rows that are not read again soon: past the caches, so that the line written to is not fetched first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

// Functions marked so are compiled for several instruction sets, and the dynamic loader picks one: a build runs on every
// x86-64.  Sanitizers do not bear the resolver, which runs before they are ready.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MEGATRON_VLM_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define MEGATRON_VLM_CLONES
#endif

namespace megatron_vlm {

// Outputs below this stay in the last-level cache, where whoever reads them next finds them.
constexpr std::int64_t kStreamingBytes = 8 << 20;

inline void prefetch(const void* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address, 0, 1);
#else
  (void)address;
#endif
}

#if defined(__SSE2__)

inline void stream_row(void* target, const void* source, std::size_t bytes) {
  auto* to = static_cast<unsigned char*>(target);
  const auto* from = static_cast<const unsigned char*>(source);
  const std::size_t head = (16 - reinterpret_cast<std::uintptr_t>(to) % 16) % 16;
  if (bytes < head + 64) {
    std::memcpy(to, from, bytes);
    return;
  }
  std::memcpy(to, from, head);
  to += head, from += head, bytes -= head;
  for (; bytes >= 64; to += 64, from += 64, bytes -= 64) {
    const auto* in = reinterpret_cast<const __m128i*>(from);
    auto* out = reinterpret_cast<__m128i*>(to);
    const __m128i a = _mm_loadu_si128(in), b = _mm_loadu_si128(in + 1);
    const __m128i c = _mm_loadu_si128(in + 2), d = _mm_loadu_si128(in + 3);
    _mm_stream_si128(out, a);
    _mm_stream_si128(out + 1, b);
    _mm_stream_si128(out + 2, c);
    _mm_stream_si128(out + 3, d);
  }
  std::memcpy(to, from, bytes);
}

inline void stream_zeros(void* target, std::size_t bytes) {
  auto* to = static_cast<unsigned char*>(target);
  const std::size_t head = (16 - reinterpret_cast<std::uintptr_t>(to) % 16) % 16;
  if (bytes < head + 64) {
    std::memset(to, 0, bytes);
    return;
  }
  std::memset(to, 0, head);
  to += head, bytes -= head;
  const __m128i zero = _mm_setzero_si128();
  for (; bytes >= 16; to += 16, bytes -= 16) _mm_stream_si128(reinterpret_cast<__m128i*>(to), zero);
  std::memset(to, 0, bytes);
}

// Streamed stores are ordered with nothing: before another thread may read them, they have to be fenced.
inline void finish_streaming() { _mm_sfence(); }

#else

inline void stream_row(void* target, const void* source, std::size_t bytes) { std::memcpy(target, source, bytes); }
inline void stream_zeros(void* target, std::size_t bytes) { std::memset(target, 0, bytes); }
inline void finish_streaming() {}

#endif

}  // namespace megatron_vlm
