// A batch in parts that fit in memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace swsl {

// Calls compute(begin, size) for parts of `count` images of at most `most`. Where one throws OutOfMemory,
// `most` is halved for good, so that no size is tried twice, give_back() frees what can be spared, and the
// same images are computed in smaller parts. A single image that does not fit throws.
template <class OutOfMemory, class Compute, class GiveBack>
void in_parts(std::int64_t count, std::atomic<int>& most, const Compute& compute, const GiveBack& give_back) {
  for (std::int64_t begin = 0; begin < count;) {
    const auto size = std::min<std::int64_t>(count - begin, most);
    try {
      compute(begin, static_cast<int>(size));
      begin += size;
    } catch (const OutOfMemory&) {
      give_back();
      if (size == 1) throw;
      most = static_cast<int>(std::min<std::int64_t>(most, (size + 1) / 2));
    }
  }
}

// The number of images that a graph is made for which computes `size` of them: 1, 2, 3, 4, 6, 8, 12, 16, …,
// at most `most`. A third of the work at most is padding, and graphs are few.
inline int bucket_size(int size, int most) {
  int bucket = 1;
  while (bucket < size) {
    const int half_more = bucket + bucket / 2;
    if (bucket > 1 && half_more >= size) return std::min(half_more, most);
    bucket *= 2;
  }
  return std::min(bucket, most);
}

}  // namespace swsl
