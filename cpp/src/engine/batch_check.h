// What every engine demands of a batch and of the process.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include <swsl/batch.h>

namespace swsl {

inline void check_batch(const Batch& batch) {
  if (batch.shape[1] == 3 &&
      std::all_of(batch.shape.begin(), batch.shape.end(), [](auto n) { return n >= 0; }) &&
      batch.shape[2] < (1 << 24) && batch.shape[3] < (1 << 24))
    return;
  std::string found;
  for (const auto n : batch.shape) found += (found.empty() ? "" : "×") + std::to_string(n);
  throw std::invalid_argument("batch: expected N×3×height×width, got " + found);
}

inline void check_profiled(const Batch& batch, int max_batch) {
  check_batch(batch);
  if (batch.shape[0] > max_batch)
    throw std::invalid_argument("batch: expected at most " + std::to_string(max_batch) +
                                " images to profile (max_batch), got " + std::to_string(batch.shape[0]));
}

// `owner`: the process that made the engine. `lost`: what of it a fork leaves behind.
inline void check_process(pid_t owner, const char* lost) {
  if (getpid() == owner) return;
  throw std::runtime_error(std::string("this runner was made before the process forked, and ") + lost +
                           "; make the runner in the process that uses it");
}

}  // namespace swsl
