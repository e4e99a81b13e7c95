// Splitting work over a few threads.  The caller says how many (torch's own number), and threads are started for one call
// only: no pool is left behind that a fork would break or that would compete with torch's.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace megatron_vlm {

// How many of `threads` are worth starting when each should have at least `least` units of `work`.
inline int useful_threads(int threads, std::int64_t work, std::int64_t least) {
  return static_cast<int>(std::clamp<std::int64_t>(work / std::max<std::int64_t>(least, 1), 1, std::max(threads, 1)));
}

// Calls body(part) for part = 0 .. parts - 1, the last on this thread.  The first exception of a part is thrown here
// after all of them have ended.
template <typename Body>
void in_parallel(int parts, const Body& body) {
  std::vector<std::exception_ptr> failed(static_cast<std::size_t>(parts));
  const auto run = [&](int part) {
    try {
      body(part);
    } catch (...) {
      failed[static_cast<std::size_t>(part)] = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  others.reserve(static_cast<std::size_t>(parts));
  for (int part = 0; part + 1 < parts; ++part) {
    try {
      others.emplace_back(run, part);
    } catch (const std::system_error&) {  // no more threads to be had: do it here
      run(part);
    }
  }
  run(parts - 1);
  for (auto& thread : others) thread.join();
  for (const auto& error : failed) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace megatron_vlm
