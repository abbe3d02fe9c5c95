#include "libtorch/parts.h"

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "check.h"

using namespace swsl;

namespace {

struct OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace

TEST(a_size_that_does_not_fit_is_tried_once) {
  std::atomic<int> most = 16;
  std::vector<int> tried;
  int given_back = 0;
  const auto compute = [&](std::int64_t, int size) {
    tried.push_back(size);
    if (size > 5) throw OutOfMemory("");
  };
  in_parts<OutOfMemory>(20, most, compute, [&] { ++given_back; });
  CHECK(tried == (std::vector<int>{16, 8, 4, 4, 4, 4, 4}));
  CHECK_EQ(given_back, 2);
  tried.clear();
  in_parts<OutOfMemory>(6, most, compute, [&] { ++given_back; });
  CHECK(tried == (std::vector<int>{4, 2}));
  std::atomic<int> few = 3;
  CHECK_THROWS(OutOfMemory, "",
               in_parts<OutOfMemory>(3, few, [](std::int64_t, int) { throw OutOfMemory("full"); }, [] {}));
}

TEST(buckets_pad_by_a_third_at_most) {
  for (const int most : {1, 5, 16, 64, 100}) {
    for (int size = 1; size <= most; ++size) {
      const int bucket = bucket_size(size, most);
      CHECK(bucket >= size && bucket <= most && bucket_size(bucket, most) == bucket);
      CHECK(2 * bucket <= 3 * size);
    }
  }
  CHECK_EQ(bucket_size(33, 64), 48);
}
