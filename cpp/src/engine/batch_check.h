// What every engine demands of a batch, the process and the memory.
#pragma once

#include <unistd.h>

#include <stdexcept>
#include <string>

#include <ATen/core/Tensor.h>

namespace swsl {

inline void check_batch(const at::Tensor& batch) {
  if (batch.dim() == 4 && batch.size(1) == 3 && batch.is_floating_point()) return;
  std::string found = c10::toString(batch.scalar_type());
  for (const auto n : batch.sizes()) found += ' ' + std::to_string(n);
  throw std::invalid_argument("batch: expected a floating-point tensor N×3×height×width, got " + found);
}

inline void check_profiled(const at::Tensor& batch, int max_batch) {
  check_batch(batch);
  if (batch.size(0) > max_batch)
    throw std::invalid_argument("batch: expected at most " + std::to_string(max_batch) +
                                " images to profile (max_batch), got " + std::to_string(batch.size(0)));
}

// Where not even a single image of the batch fits.
[[noreturn]] inline void out_of_memory(const at::Tensor& batch, const std::string& device) {
  throw std::runtime_error("out of memory on " + device + ": not even one image of " +
                           std::to_string(batch.size(2)) + " × " + std::to_string(batch.size(3)) +
                           " (height × width) fits beside what the GPU holds already");
}

// `owner`: the process that made the engine. `lost`: what of it a fork leaves behind.
inline void check_process(pid_t owner, const char* lost) {
  if (getpid() == owner) return;
  throw std::runtime_error(std::string("this runner was made before the process forked, and ") + lost +
                           "; make the runner in the process that uses it");
}

}  // namespace swsl
