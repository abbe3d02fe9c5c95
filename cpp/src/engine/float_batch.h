// A batch as contiguous float32, N×3×H×W: its own memory where it is that already, else a copy.
#pragma once

#include <cstdint>
#include <vector>

#include <swsl/batch.h>

namespace swsl {

class FloatBatch {
 public:
  // Throws std::invalid_argument for memory of a CUDA device.
  explicit FloatBatch(const Batch& batch);

  const float* data() const { return data_; }

 private:
  const float* data_;
  std::vector<float> copy_;
};

// As IEEE 754 has it.
float from_float16(std::uint16_t half);

}  // namespace swsl
