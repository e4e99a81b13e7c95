// One kernel source, two compilers.  Under nvcc this is CUDA and nothing more; under g++ the names that the kernels use are
// given by emulation.h, so that the same files run on a machine without a GPU, for tests.
//
// Kernels keep to what both sides have: threadIdx and its like in x and y, __syncthreads, shared_array, load, store,
// set_fault, keep_least.  No shuffles, no dynamic shared memory.
#pragma once

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#define MVLM_KERNEL __global__
#define MVLM_DEVICE __device__ __forceinline__
// The most threads of a block, and how many blocks a multiprocessor should hold at least.
#define MVLM_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define MVLM_UNROLL _Pragma("unroll")
#define MVLM_SHARED(type, name, count) __shared__ type name[count]
#else
#include "emulation.h"
#define MVLM_KERNEL static
#define MVLM_DEVICE inline
#define MVLM_BOUNDS(threads, blocks)
#define MVLM_UNROLL
// A lambda's type differs at every place, so that every declaration has memory of its own.
#define MVLM_SHARED(type, name, count) type* name = mvlm::emulation::shared<type, count>([] {})
#endif

namespace mvlm {

// What one thread moves at once.
template <int kBytes>
struct UnitOf;
template <>
struct UnitOf<16> {
  using type = uint4;
};
template <>
struct UnitOf<8> {
  using type = uint2;
};
template <>
struct UnitOf<4> {
  using type = uint32_t;
};
template <>
struct UnitOf<2> {
  using type = uint16_t;
};
template <int kBytes>
using Unit = typename UnitOf<kBytes>::type;

// A read of what nothing writes while the kernel runs: it may go through the read-only cache.
template <typename T>
MVLM_DEVICE T load(const T* from) {
#ifdef __CUDACC__
  return __ldg(from);
#else
  return emulation::aligned(from) ? *from : T{};
#endif
}

template <typename T>
MVLM_DEVICE void store(T* to, const T& value) {
#ifdef __CUDACC__
  *to = value;
#else
  if (emulation::aligned(to)) *to = value;
#endif
}

MVLM_DEVICE void set_fault(int32_t* fault, int32_t bit) {
#ifdef __CUDACC__
  atomicOr(fault, bit);
#else
  *fault |= bit;
#endif
}

// Writes `value` where less than what is there, as unsigned numbers (-1 is the greatest), and returns what was there.
MVLM_DEVICE int64_t keep_least(int64_t* at, int64_t value) {
#ifdef __CUDACC__
  return static_cast<int64_t>(
      atomicMin(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value)));
#else
  const int64_t before = *at;
  if (static_cast<uint64_t>(value) < static_cast<uint64_t>(before)) *at = value;
  return before;
#endif
}

// Both give what launching gave.  A kernel that has a barrier goes through the second: the emulation then runs its threads
// as fibers, which is far slower.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream, Arguments... arguments) {
#ifdef __CUDACC__
  kernel<<<grid, block, 0, stream>>>(arguments...);
  return cudaGetLastError();
#else
  (void)stream;
  return emulation::run(grid, block, false, [&] { kernel(arguments...); });
#endif
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch_with_barriers(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream,
                                 Arguments... arguments) {
#ifdef __CUDACC__
  return launch(kernel, grid, block, stream, arguments...);
#else
  (void)stream;
  return emulation::run(grid, block, true, [&] { kernel(arguments...); });
#endif
}

// Whether every row of `row_bytes` that starts at one of the addresses can be moved in units of `bytes`.
template <typename... Addresses>
bool moves_in(int bytes, int64_t row_bytes, Addresses... addresses) {
  const uintptr_t all = (static_cast<uintptr_t>(row_bytes) | ... | reinterpret_cast<uintptr_t>(addresses));
  return all % static_cast<uintptr_t>(bytes) == 0;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

inline int64_t at_most(int64_t value, int64_t most) { return value < most ? value : most; }

}  // namespace mvlm
