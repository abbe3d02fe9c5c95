// What of the GPU engine runs without a GPU: the grouped convolution's packing and indices, in a host twin that goes through the
// blocks, tiles and taps as its kernel does, against a plain grouped convolution; and how batches are cut into parts.
#include <atomic>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "engine/cuda/grouped.h"
#include "engine/cuda/parts.h"

using namespace swsl::cuda;

namespace {

// Integers, so that sums are exact in any order.
std::vector<float> numbers(std::size_t count, std::mt19937& random) {
  std::vector<float> result(count);
  for (auto& value : result) value = static_cast<float>(static_cast<int>(random() % 17) - 8);
  return result;
}

// Images × height × width × channels, as everything here; weights [channels][group_width][3][3].
std::vector<float> plain(const GroupedShape& s, int group_width, const std::vector<float>& input, const std::vector<float>& weights) {
  std::vector<float> output(static_cast<std::size_t>(s.images) * s.out_height * s.out_width * s.channels);
  auto* to = output.data();
  for (int n = 0; n < s.images; ++n)
    for (int oy = 0; oy < s.out_height; ++oy)
      for (int ox = 0; ox < s.out_width; ++ox)
        for (int c = 0; c < s.channels; ++c, ++to)
          for (int tap = 0; tap < 9; ++tap) {
            const int y = oy * s.stride - 1 + tap / 3, x = ox * s.stride - 1 + tap % 3;
            if (y < 0 || y >= s.height || x < 0 || x >= s.width) continue;
            const float* pixel = input.data() + ((static_cast<std::size_t>(n) * s.height + y) * s.width + x) * s.channels;
            for (int i = 0; i < group_width; ++i)
              *to += pixel[c / group_width * group_width + i] * weights[(static_cast<std::size_t>(c) * group_width + i) * 9 + tap];
          }
  return output;
}

std::vector<float> host_twin(const GroupedShape& s, const std::vector<float>& input, const std::vector<float>& packed) {
  std::vector<float> output(static_cast<std::size_t>(s.images) * s.out_height * s.out_width * s.channels, -12345);
  std::vector<float> shared(static_cast<std::size_t>(shared_pixels(s)) * block_channels);
  for (int n = 0; n < s.images; ++n)
    for (int first = 0; first < s.out_height; first += s.rows)
      for (int block = 0; block < s.channels / block_channels; ++block) {
        for (int index = 0; index < shared_pixels(s); ++index)
          for (int c = 0; c < block_channels; ++c) {
            const int pixel = source_pixel(s, first, index);
            shared.at(static_cast<std::size_t>(index) * block_channels + c) =
                pixel < 0 ? 0 : input.at((static_cast<std::size_t>(n) * s.height * s.width + pixel) * s.channels + block * block_channels + c);
          }
        for (int tile = 0; tile < tiles(s); ++tile)
          for (int row = 0; row < tile_pixels; ++row)
            for (int out = 0; out < block_channels; ++out) {
              float sum = 0;
              for (int tap = 0; tap < grouped_taps; ++tap)
                for (int in = 0; in < block_channels; ++in)
                  sum += shared.at(static_cast<std::size_t>(tap_pixel(s, tile, tap) + s.stride * row) * block_channels + in) *
                         packed.at(weight_index(block, tap, in, out));
              const int pixel = output_pixel(s, first, tile, row);
              if (pixel >= 0)
                output.at((static_cast<std::size_t>(n) * s.out_height * s.out_width + pixel) * s.channels + block * block_channels + out) = sum;
            }
      }
  return output;
}

struct OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace

TEST(merged_groups_compute_the_grouped_convolution) {
  std::mt19937 random(1);
  for (const int group_width : {4, 8, 16})
    for (const int stride : {1, 2})
      for (const auto& [height, width] : {std::pair{7, 7}, {14, 14}, {9, 20}, {1, 1}, {5, 2}, {28, 3}})
        for (const std::size_t budget : {std::size_t{12} << 10, std::size_t{48} << 10}) {
          const int channels = 16 * (1 + static_cast<int>(random() % 4));
          const auto shape = make_grouped_shape(2, height, width, channels, stride, budget);
          CHECK(shape.rows > 0 && shared_bytes(shape) <= budget);
          const auto input = numbers(std::size_t{2} * height * width * channels, random);
          const auto weights = numbers(std::size_t{9} * channels * group_width, random);
          if (host_twin(shape, input, pack_grouped(weights.data(), channels, group_width)) != plain(shape, group_width, input, weights))
            check::fail(__FILE__, __LINE__, "groups of ", group_width, ", stride ", stride, ", ", height, " × ", width, ", rows ", shape.rows);
        }
}

TEST(the_kernel_takes_what_it_can_compute) {
  CHECK(is_grouped_case(128, 32, 1) && is_grouped_case(256, 32, 2) && is_grouped_case(512, 32, 1) && is_grouped_case(16, 4, 1));
  CHECK(!is_grouped_case(1024, 32, 1));  // 32 channels a group fill tiles without merging
  CHECK(!is_grouped_case(128, 1, 1) && !is_grouped_case(24, 6, 1) && !is_grouped_case(128, 32, 3));
  CHECK_EQ(make_grouped_shape(1, 4, 5000, 32, 1, 48 << 10).rows, 0);  // not a row fits: left to cuDNN
  const auto stage1 = make_grouped_shape(1, 56, 56, 128, 1, 48 << 10);
  CHECK(stage1.rows >= 4 && shared_bytes(stage1) <= 48 << 10);
}

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
  CHECK_THROWS(OutOfMemory, "", in_parts<OutOfMemory>(3, few, [](std::int64_t, int) { throw OutOfMemory("full"); }, [] {}));
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
