// The GPU engine's kernels against plain loops: on the CPU (see cuda_on_cpu) and, as test_cuda_kernels_gpu,
// on a GPU.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "check.h"
#include "device_memory.h"
#include "libtorch/cuda/engine/kernels.h"

using namespace swsl::cuda;
using fixtures::DeviceMemory, fixtures::need_gpu;

namespace {

template <typename T>
constexpr Number number_of = Number::float32;
template <>
constexpr Number number_of<c10::Half> = Number::float16;
template <>
constexpr Number number_of<c10::BFloat16> = Number::bfloat16;

template <typename T>
std::vector<T> rounded(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

float relu_of(float x) { return x < 0 ? 0 : x; }

template <typename T>
void check_equal(const std::vector<T>& actual, const std::vector<T>& expected, const std::string& what) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const auto a = static_cast<float>(actual.at(i)), b = static_cast<float>(expected[i]);
    if (a != b && !(std::isnan(a) && std::isnan(b)))
      check::fail(__FILE__, __LINE__, what, ": value ", i, " is ", a, ", expected ", b);
  }
}

void check_ran(const char* error) {
  if (error != nullptr) check::fail(__FILE__, __LINE__, error);
}

void check_refused(const char* error, const std::string& part) {
  if (error == nullptr || std::string(error).find(part) == std::string::npos)
    check::fail(__FILE__, __LINE__, error ? error : "no error", ", expected ", part);
  CHECK_EQ(cudaGetLastError(), cudaSuccess);
}

template <typename T>
void check_epilogue(int pixels, int channels, bool with_residual, bool relu) {
  std::mt19937 random(static_cast<unsigned>(pixels * 100 + channels));
  std::normal_distribution<float> normal(0, 3);
  const auto numbers = [&](int count) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (auto& value : values) value = normal(random);
    return values;
  };
  auto data = rounded<T>(numbers(pixels * channels));
  data[data.size() / 3] = std::nanf("");
  const auto residual = rounded<T>(numbers(pixels * channels));
  const auto bias = numbers(channels);
  std::vector<T> expected;
  for (std::size_t i = 0; i < data.size(); ++i) {
    const float sum = static_cast<float>(data[i]) + bias[i % bias.size()];
    const float value = with_residual ? sum + static_cast<float>(residual[i]) : sum;
    expected.push_back(relu ? relu_of(value) : value);
  }
  DeviceMemory on_device(data), added(residual);
  DeviceMemory on_device_bias(bias);
  check_ran(run_epilogue(number_of<T>, on_device.data(), on_device_bias.data(),
                         with_residual ? added.data() : nullptr, pixels, channels, relu, nullptr));
  check_equal(on_device.values(), expected,
              std::to_string(pixels) + " pixels, " + std::to_string(channels) + " channels");
}

template <typename T>
void check_max_pool(const PoolShape& s) {
  std::mt19937 random(static_cast<unsigned>(s.height * 100 + s.channels));
  std::normal_distribution<float> normal(0, 3);
  std::vector<T> input;
  for (int i = 0; i < s.images * s.height * s.width * s.channels; ++i)
    input.push_back(static_cast<T>(normal(random)));
  input[input.size() / 3] = static_cast<T>(std::nanf(""));
  std::vector<T> expected;
  for (int n = 0; n < s.images; ++n)
    for (int out_y = 0; out_y < s.out_height; ++out_y)
      for (int out_x = 0; out_x < s.out_width; ++out_x)
        for (int c = 0; c < s.channels; ++c) {
          float largest = -INFINITY;
          for (int i = 0; i < s.kernel_height * s.kernel_width; ++i) {
            const int y = out_y * s.stride_height - s.pad_height + i / s.kernel_width,
                      x = out_x * s.stride_width - s.pad_width + i % s.kernel_width;
            if (y < 0 || y >= s.height || x < 0 || x >= s.width || std::isnan(largest)) continue;
            const auto value = static_cast<float>(
                input[((static_cast<std::size_t>(n) * s.height + y) * s.width + x) * s.channels + c]);
            largest = std::isnan(value) ? value : std::max(largest, value);
          }
          expected.push_back(static_cast<T>(largest));
        }
  DeviceMemory from(input);
  DeviceMemory<T> to(expected.size());
  check_ran(run_max_pool(number_of<T>, s, from.data(), to.data(), nullptr));
  check_equal(to.values(), expected, std::to_string(s.height) + " × " + std::to_string(s.width));
}

// Integers, so that sums are exact in any order.
std::vector<float> integers(std::size_t count, std::mt19937& random) {
  std::vector<float> result(count);
  for (auto& value : result) value = static_cast<float>(static_cast<int>(random() % 17) - 8);
  return result;
}

// Images × height × width × channels, as everything here; weights [channels][group_width][3][3].
std::vector<float> plain(const GroupedShape& s, int group_width, const std::vector<float>& input,
                         const std::vector<float>& weights) {
  std::vector<float> output(static_cast<std::size_t>(s.images) * s.out_height * s.out_width * s.channels);
  auto* to = output.data();
  for (int n = 0; n < s.images; ++n)
    for (int oy = 0; oy < s.out_height; ++oy)
      for (int ox = 0; ox < s.out_width; ++ox)
        for (int c = 0; c < s.channels; ++c, ++to)
          for (int tap = 0; tap < 9; ++tap) {
            const int y = oy * s.stride - 1 + tap / 3, x = ox * s.stride - 1 + tap % 3;
            if (y < 0 || y >= s.height || x < 0 || x >= s.width) continue;
            const float* pixel =
                input.data() + ((static_cast<std::size_t>(n) * s.height + y) * s.width + x) * s.channels;
            for (int i = 0; i < group_width; ++i)
              *to += pixel[c / group_width * group_width + i] *
                     weights[(static_cast<std::size_t>(c) * group_width + i) * 9 + tap];
          }
  return output;
}

template <typename T>
void check_grouped(const GroupedShape& s, int group_width, bool relu, std::mt19937& random) {
  const auto input = integers(static_cast<std::size_t>(s.images) * s.height * s.width * s.channels, random);
  const auto weights = integers(static_cast<std::size_t>(9) * s.channels * group_width, random);
  auto bias = integers(static_cast<std::size_t>(s.channels), random);
  for (auto& value : bias) value *= 16;
  auto expected = plain(s, group_width, input, weights);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    expected[i] += bias[i % bias.size()];
    if (relu) expected[i] = relu_of(expected[i]);
  }
  DeviceMemory from(rounded<T>(input)),
      packed(rounded<T>(pack_grouped(weights.data(), s.channels, group_width)));
  DeviceMemory on_device_bias(bias);
  DeviceMemory<T> to(expected.size());
  const char* error = run_grouped(number_of<T>, s, from.data(), packed.data(), on_device_bias.data(), relu,
                                  to.data(), nullptr);
#if !CUDA_ON_CPU
  if (error != nullptr && number_of<T> == Number::bfloat16 &&
      std::string(error).find("number format") != std::string::npos)
    return;
#endif
  check_ran(error);
  const std::string what = "groups of " + std::to_string(group_width) + ", stride " +
                           std::to_string(s.stride) + ", " + std::to_string(s.height) + " × " +
                           std::to_string(s.width) + " × " + std::to_string(s.channels) + ", rows " +
                           std::to_string(s.rows);
  check_equal(to.values(), rounded<T>(expected), what);
}

}  // namespace

TEST(the_epilogue_adds_and_cuts_in_every_number_format) {
  need_gpu();
  for (const int pixels : {1, 37, 300})
    for (const int channels : {1, 4, 6, 8, 12, 64})
      for (const bool with_residual : {false, true})
        for (const bool relu : {false, true}) {
          check_epilogue<float>(pixels, channels, with_residual, relu);
          check_epilogue<c10::Half>(pixels, channels, with_residual, relu);
          check_epilogue<c10::BFloat16>(pixels, channels, with_residual, relu);
        }
}

TEST(the_largest_of_a_window_in_every_number_format) {
  need_gpu();
  for (const PoolShape& shape :
       {PoolShape{2, 9, 14, 16, 5, 7, 3, 3, 2, 2, 1, 1}, PoolShape{1, 7, 7, 6, 4, 4, 3, 3, 2, 2, 1, 1},
        PoolShape{3, 5, 8, 4, 2, 7, 3, 2, 2, 1, 0, 0}, PoolShape{1, 1, 1, 8, 1, 1, 3, 3, 2, 2, 1, 1}}) {
    check_max_pool<float>(shape);
    check_max_pool<c10::Half>(shape);
    check_max_pool<c10::BFloat16>(shape);
  }
}

TEST(merged_groups_compute_the_grouped_convolution) {
  need_gpu();
  std::mt19937 random(1);
  const auto check_case = [&](int height, int width, int channels, int group_width, int stride,
                              std::size_t budget) {
    const auto shape = make_grouped_shape(2, height, width, channels, stride, budget);
    CHECK(shape.rows > 0 && shared_bytes(shape) <= budget);
    const bool relu = random() % 2;
    random() % 2 ? check_grouped<c10::Half>(shape, group_width, relu, random)
                 : check_grouped<c10::BFloat16>(shape, group_width, relu, random);
  };
  for (const int group_width : {4, 8, 16})
    for (const int stride : {1, 2}) {
      for (const auto& [height, width] : {std::pair{7, 7}, {14, 14}, {9, 20}, {1, 1}, {5, 2}, {28, 3}})
        for (const std::size_t budget : {std::size_t{12} << 10, std::size_t{48} << 10})
          for (const int channels : {16, 48, 64})  // one and two blocks of channels at once
            check_case(height, width, channels, group_width, stride, budget);
      for (const std::size_t budget : {std::size_t{24} << 10, std::size_t{48} << 10})  // as the engine has it
        check_case(30, 30, 64, group_width, stride, budget);
    }
}

// Under a sanitizer of GPUs each launch takes long: compute-sanitizer test_cuda_kernels_gpu each_kernel
TEST(each_kernel_computes_something_small) {
  need_gpu();
  std::mt19937 random(2);
  check_epilogue<c10::Half>(37, 64, true, true);
  check_epilogue<float>(3, 6, false, true);
  check_max_pool<c10::Half>({2, 9, 14, 16, 5, 7, 3, 3, 2, 2, 1, 1});
  for (const int stride : {1, 2})
    check_grouped<c10::Half>(make_grouped_shape(2, 9, 20, 64, stride, 12 << 10), 4, true, random);
}

TEST(what_one_launch_cannot_take_is_an_error) {
  need_gpu();
  const auto refused = [](const GroupedShape& shape, const std::string& part) {
    check_refused(run_grouped(Number::float16, shape, nullptr, nullptr, nullptr, false, nullptr, nullptr),
                  part);
  };
  refused(make_grouped_shape(1, 4, 5000, 32, 1, 48 << 10), "no row");
  refused(make_grouped_shape(65536, 4, 4, 32, 1, 48 << 10), "65535 images");
  refused(make_grouped_shape(1, 1, 1, 65536 * 32, 1, 48 << 10), "invalid");
  refused(make_grouped_shape(1, 200, 100, 32, 1, 60 << 10), "invalid");
  check_refused(
      run_epilogue(Number::float16, nullptr, nullptr, nullptr, std::int64_t{1} << 50, 16, false, nullptr),
      "one launch");
  check_refused(run_epilogue(Number::float32, nullptr, nullptr, nullptr, 0, 16, false, nullptr), "invalid");
}

TEST(tensor_cores_without_the_number_format_are_refused) {
  need_gpu();
  const auto shape = make_grouped_shape(1, 4, 4, 16, 1, 48 << 10);
  const auto run = [&](Number number) {
    return run_grouped(number, shape, nullptr, nullptr, nullptr, false, nullptr, nullptr);
  };
  check_refused(run(Number::float32), "number format");
#if CUDA_ON_CPU
  cuda_on_cpu::ptx_version = 75;
  const char* error = run(Number::bfloat16);
  cuda_on_cpu::ptx_version = 90;
  check_refused(error, "number format");
#endif
}

TEST(the_kernel_takes_what_it_can_compute) {
  CHECK(is_grouped_case(128, 32, 1) && is_grouped_case(256, 32, 2) && is_grouped_case(512, 32, 1) &&
        is_grouped_case(16, 4, 1));
  CHECK(!is_grouped_case(1024, 32, 1));  // 32 channels a group fill tiles without merging
  CHECK(!is_grouped_case(128, 1, 1) && !is_grouped_case(24, 6, 1) && !is_grouped_case(128, 32, 3));
  CHECK_EQ(make_grouped_shape(1, 4, 5000, 32, 1, 48 << 10).rows, 0);  // not a row fits: left to cuDNN
  const auto stage1 = make_grouped_shape(1, 56, 56, 128, 1, 48 << 10);
  CHECK(stage1.rows >= 4 && shared_bytes(stage1) <= 48 << 10);
}
