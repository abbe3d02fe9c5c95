// Packed images through the two kernels, against the scalar path's bytes: on the CPU (see cuda_on_cpu) and,
// as test_packed_resample_gpu, on a GPU.
//
//   SWSL_FUZZ_CASES=10000 test_packed_resample random
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <swsl/preprocessor.h>
#include "check.h"
#include "device_memory.h"
#include "libtorch/cuda/batch/packing.h"
#include "libtorch/cuda/batch/passes.h"
#include "resample/normalization.h"

using swsl::ElementType;
using swsl::Interpolation;
using swsl::Layout;
using namespace swsl::resample;
using fixtures::DeviceMemory, fixtures::need_gpu;

namespace {

struct Work {
  swsl::PreprocessSpec spec;
  ElementType type;
  Layout layout;
  std::vector<swsl::Image> images;
};

swsl::Image noise(int height, int width, std::mt19937& random) {
  swsl::Image image{height, width, std::vector<std::uint8_t>(std::size_t{3} * height * width)};
  const bool extremes = random() % 4 == 0;  // sums at their largest, bicubic overshoots
  for (auto& byte : image.pixels)
    byte = static_cast<std::uint8_t>(extremes ? (random() & 1 ? 255 : 0) : random() >> 24);
  return image;
}

Work random_work(std::uint32_t seed) {
  std::mt19937 random(seed);
  const auto uniform = [&](int low, int high) { return std::uniform_int_distribution(low, high)(random); };
  const auto spread = [&](int high) {  // as many between 1 and 10 as between 100 and 1000
    return static_cast<int>(std::exp(std::uniform_real_distribution(0.0, std::log(high + 0.99))(random)));
  };
  Work work{};
  work.spec.height = spread(96);
  work.spec.width = uniform(0, 2) ? work.spec.height : spread(96);
  constexpr double crops[] = {0.875, 1.0, 0.95, 0.5, 1.25};
  work.spec.crop_pct = std::min<double>(crops[uniform(0, 4)], std::min(work.spec.height, work.spec.width));
  work.spec.interpolation = uniform(0, 1) ? Interpolation::bicubic : Interpolation::bilinear;
  work.spec.mean = {0.485, 0.456, uniform(-100, 100) / 50.0};
  work.spec.std = {0.229, 0.224, uniform(1, 300) / 317.0};
  work.type = static_cast<ElementType>(uniform(0, 2));
  work.layout = static_cast<Layout>(uniform(0, 1));
  for (int i = uniform(1, 5); i > 0; --i) work.images.push_back(noise(spread(500), spread(500), random));
  return work;
}

std::size_t tensor_bytes(const Work& work) {
  return std::size_t{3} * work.spec.height * work.spec.width * (work.type == ElementType::float32 ? 4 : 2);
}

std::vector<std::uint8_t> expected(const Work& work) {
  const swsl::Preprocessor scalar(work.spec, swsl::Isa::scalar);
  std::vector<std::uint8_t> output(tensor_bytes(work) * work.images.size());
  for (std::size_t i = 0; i < work.images.size(); ++i)
    scalar(work.images[i].view(), output.data() + i * tensor_bytes(work), work.type, work.layout);
  return output;
}

PackedBatch describe(const Work& work, const PackedImage* images, const Normalization* normalization,
                     void* output) {
  return {images,
          static_cast<int>(work.images.size()),
          work.spec.height,
          work.spec.width,
          normalization,
          output,
          static_cast<Element>(work.type),
          work.layout == Layout::channels_last};
}

std::vector<std::uint8_t> run(const Work& work, std::vector<PackedImage>& images, std::size_t between) {
  DeviceMemory<std::uint8_t> middle(between), output(tensor_bytes(work) * images.size());
  const std::int64_t blocks = arrange(images, middle.data());
  DeviceMemory descriptors(images);
  DeviceMemory normalization(std::vector{make_normalization(work.spec)});
  if (const char* error = run_passes(describe(work, descriptors.data(), normalization.data(), output.data()),
                                     blocks, nullptr))
    check::fail(__FILE__, __LINE__, error);
  return output.values();
}

// Every image, and all between the passes, in memory of exactly the size that was promised.
std::vector<std::uint8_t> kernels(const Work& work) {
  const Packing packing(work.spec);
  std::vector<DeviceMemory<std::uint8_t>> packed;
  std::vector<PackedImage> images;
  std::size_t between = 0;
  for (const auto& image : work.images) {
    const PackedPlan plan = packing.plan(image.height, image.width);
    packed.emplace_back(plan.bytes);
    packing.write(plan, image.view(), packed.back().data());
    images.push_back(plan.describe(packed.back().data()));
    between += plan.middle_bytes;
  }
  return run(work, images, between);
}

void check_work(const Work& work, const std::string& what) {
  if (kernels(work) != expected(work)) check::fail(__FILE__, __LINE__, "differs: ", what);
}

const swsl::PreprocessSpec imagenet{
    224, 224, 0.875, Interpolation::bilinear, {0.485, 0.456, 0.406}, {0.229, 0.224, 0.225}};

}  // namespace

TEST(random_batches_equal_the_definition) {
  need_gpu();
  const char* cases = std::getenv("SWSL_FUZZ_CASES");
  for (std::uint32_t seed = 0; seed < (cases ? std::stoul(cases) : 300); ++seed)
    check_work(random_work(seed), "seed " + std::to_string(seed));
}

TEST(any_ratio_and_both_orders_of_the_passes) {
  need_gpu();
  std::mt19937 random(7);
  Work work{imagenet, ElementType::float16, Layout::channels_last, {}};
  for (const auto& [height, width] :
       {std::pair{12000, 300}, {300, 12000}, {1, 1}, {2000, 700}, {1213, 1546}, {224, 224}, {9, 4000}})
    work.images.push_back(noise(height, width, random));
  check_work(work, "fixed sizes");
  CHECK(geometry(imagenet, 2000, 700).vertical_first);
}

TEST(a_batch_of_one_image_and_one_pixel) {
  need_gpu();
  std::mt19937 random(8);
  swsl::PreprocessSpec spec = imagenet;
  spec.height = spec.width = 1;
  spec.crop_pct = 1;
  check_work({spec, ElementType::bfloat16, Layout::planar, {noise(5, 3, random)}}, "one pixel");
}

TEST(what_one_launch_cannot_take_is_an_error) {
  need_gpu();
  PackedBatch batch{};
  batch.count = 3;
  batch.height = batch.width = 500000;
  CHECK(run_passes(batch, 1, nullptr) != nullptr);
  batch.height = batch.width = 1;
  CHECK(run_passes(batch, std::int64_t{1} << 31, nullptr) != nullptr);
  CHECK(run_passes(batch, 0, nullptr) != nullptr);
  CHECK_EQ(cudaGetLastError(), cudaSuccess);
  batch.count = 0;
  CHECK(run_passes(batch, 0, nullptr) == nullptr);
}

// Images that the GPU has decoded itself lie there whole, and only their tables are packed.
TEST(images_decoded_on_the_gpu_give_the_same) {
  need_gpu();
  for (std::uint32_t seed = 0; seed < 100; ++seed) {
    const Work work = random_work(1000 + seed);
    const Packing packing(work.spec);
    std::vector<DeviceMemory<std::uint8_t>> decoded, tables;
    std::vector<PackedImage> images;
    std::size_t between = 0;
    for (const auto& image : work.images) {
      const std::size_t row = std::size_t{3} * image.width, stride = (row + 3) / 4 * 4 + 4 * (seed % 3);
      auto& pixels = decoded.emplace_back(stride * image.height + 16);
      for (int y = 0; y < image.height; ++y)
        std::memcpy(pixels.data() + y * stride, image.pixels.data() + y * row, row);
      const PackedPlan plan = packing.plan_decoded(image.height, image.width, stride);
      packing.write_tables(plan, tables.emplace_back(plan.bytes).data());
      images.push_back(plan.describe(tables.back().data(), pixels.data()));
      between += plan.middle_bytes;
    }
    if (run(work, images, between) != expected(work)) check::fail(__FILE__, __LINE__, "differs: seed ", seed);
  }
}
