// CUDA for one CPU thread, as much of it as portable.h needs; never part of what users install.
//
// Blocks run one after another, forwards or backwards.  Threads of a kernel without barriers are a plain loop.  Threads of
// one with barriers are fibers, and each runs up to the next barrier before the following one starts: with a barrier
// missing, the first thread reads what the last has not written yet.  Shared memory is filled with rubbish at the start of a
// block.  What a GPU would refuse is refused: a misaligned access, a barrier that not all threads reach, a launch that is
// too large.  Tests may overrule the size of grid and block.
//
// Not modelled: races on global memory, warps, and time.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <vector>

struct uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

using cudaStream_t = void*;
// The numbers are CUDA's.
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorMisalignedAddress = 716,
  cudaErrorLaunchFailure = 719,
};

inline const char* cudaGetErrorName(cudaError_t code) {
  switch (code) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorMisalignedAddress: return "cudaErrorMisalignedAddress";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
  }
  return "unrecognized error code";
}

inline const char* cudaGetErrorString(cudaError_t code) {
  switch (code) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorMisalignedAddress: return "misaligned address";
    case cudaErrorLaunchFailure: return "not every thread of a block reached the same barrier";
  }
  return "unrecognized error code";
}

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  if (bytes > 0) memset(to, value, bytes);
  return cudaSuccess;
}

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace mvlm::emulation {

// 0 leaves a size as the launch asks for it.
struct Settings {
  dim3 grid{0, 0}, block{0, 0};
  bool reversed = false;
};
inline Settings settings;

struct Fiber {
  // One page would do; the sanitizers' frames are larger.
  static constexpr size_t kStack = 64 * 1024;
  ucontext_t context{};
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool done = false;
};

struct Machine {
  cudaError_t error = cudaSuccess;
  uint64_t block_number = 0;  // counts over all launches, so that shared memory can tell a new block
  Fiber* running = nullptr;   // null while threads are a plain loop
  ucontext_t scheduler{};
  const std::function<void()>* kernel = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers;
};
inline Machine machine;

template <typename T>
bool aligned(const T* address) {
  const bool fits = reinterpret_cast<uintptr_t>(address) % sizeof(T) == 0;
  if (!fits) machine.error = cudaErrorMisalignedAddress;
  return fits;
}

// `Place` is another type at every declaration.
template <typename T, int kCount, typename Place>
T* shared(Place) {
  static T items[kCount];
  static uint64_t filled_for = 0;
  if (filled_for != machine.block_number) {
    memset(static_cast<void*>(items), 0xCD, sizeof(items));
    filled_for = machine.block_number;
  }
  return items;
}

inline void run_fiber() {
  (*machine.kernel)();
  machine.running->done = true;
  swapcontext(&machine.running->context, &machine.scheduler);
}

// Thread number t of a block, x fastest.
inline dim3 place_of(unsigned t) { return {t % blockDim.x, t / blockDim.x}; }

inline void run_block_of_fibers(unsigned threads) {
  while (machine.fibers.size() < threads) machine.fibers.push_back(std::make_unique<Fiber>());
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = *machine.fibers[t];
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = Fiber::kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
  }
  // A round takes every thread to its next barrier or to its end.
  for (bool more = true; more;) {
    unsigned ended = 0;
    for (unsigned i = 0; i < threads; ++i) {
      const unsigned t = settings.reversed ? threads - 1 - i : i;
      machine.running = machine.fibers[t].get();
      threadIdx = place_of(t);
      swapcontext(&machine.scheduler, &machine.running->context);
      ended += machine.running->done;
    }
    more = ended == 0;
    if (ended != 0 && ended != threads) machine.error = cudaErrorLaunchFailure;
  }
  machine.running = nullptr;
}

inline cudaError_t run(dim3 grid, dim3 block, bool barriers, const std::function<void()>& kernel) {
  if (settings.grid.x) grid.x = settings.grid.x;
  if (settings.grid.y) grid.y = settings.grid.y;
  if (settings.block.x) block.x = settings.block.x;
  if (settings.block.y) block.y = settings.block.y;
  const uint64_t threads = uint64_t{block.x} * block.y, blocks = uint64_t{grid.x} * grid.y;
  if (threads < 1 || threads > 1024 || blocks < 1 || grid.x > 0x7fffffffu || grid.y > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  machine.error = cudaSuccess;
  machine.kernel = &kernel;
  gridDim = grid;
  blockDim = block;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t number = settings.reversed ? blocks - 1 - i : i;
    blockIdx = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x)};
    ++machine.block_number;
    if (barriers) {
      run_block_of_fibers(static_cast<unsigned>(threads));
      continue;
    }
    for (unsigned j = 0; j < threads; ++j) {
      threadIdx = place_of(settings.reversed ? static_cast<unsigned>(threads) - 1 - j : j);
      kernel();
    }
  }
  return machine.error;
}

}  // namespace mvlm::emulation

inline void __syncthreads() {
  using mvlm::emulation::machine;
  if (machine.running == nullptr) {  // launched as a kernel without barriers
    machine.error = cudaErrorLaunchFailure;
    return;
  }
  const dim3 mine = threadIdx;
  swapcontext(&machine.running->context, &machine.scheduler);
  threadIdx = mine;
}

inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
