// The readable definition of what a network computes, in nested loops over N×C×H×W arrays. Tests hold every
// kernel, packing and layout of the engine against it.
#pragma once

#include <vector>

#include "engine/plan/fuse.h"

namespace swsl::cpu {

struct Array {
  int images = 0, channels = 0, height = 0, width = 0;
  std::vector<float> values;

  float& at(int n, int c, int y, int x) {
    return values[((static_cast<std::size_t>(n) * channels + c) * height + y) * width + x];
  }
  float at(int n, int c, int y, int x) const { return const_cast<Array*>(this)->at(n, c, y, x); }
};

// Sums in double. With `bfloat16`, values are rounded to bfloat16 where the engine stores them so: the input,
// and every layer but the last after what its epilogue does. Returns every value of the network, by its
// number.
std::vector<Array> run_reference(const Network& network, const Array& input, bool bfloat16 = false);

}  // namespace swsl::cpu
