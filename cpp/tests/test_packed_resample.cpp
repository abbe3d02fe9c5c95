// What the GPU's kernels do, done on the CPU: the functions that a GPU runs in every thread, called for all of their block and
// thread numbers, give the scalar path's bytes. Where this build has kernels and the machine a GPU, the kernels themselves too.
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

#include "check.h"
#include "resample/normalization.h"
#include "resample/packing.h"
#include "swsl/preprocessor.h"

#if SWSL_CUDA_KERNELS
#include <cuda_runtime_api.h>

#include "resample/cuda/passes.h"
#endif

using swsl::ElementType;
using swsl::Interpolation;
using swsl::Layout;
using namespace swsl::resample;

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
  for (auto& byte : image.pixels) byte = static_cast<std::uint8_t>(extremes ? (random() & 1 ? 255 : 0) : random() >> 24);
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

PackedBatch describe(const Work& work, const PackedImage* images, const Normalization* normalization, void* output) {
  return {images,        static_cast<int>(work.images.size()), work.spec.height,
          work.spec.width, normalization,                         output,
          static_cast<Element>(work.type), work.layout == Layout::channels_last};
}

// Everything in memory of exactly the size that the kernels are promised, for the sanitizers to watch.
std::vector<std::uint8_t> host_twin(const Work& work) {
  const Packing packing(work.spec);
  const Normalization normalization = make_normalization(work.spec);
  std::vector<std::vector<std::uint8_t>> packed;
  std::vector<PackedImage> images;
  std::size_t between = 0;
  for (const auto& image : work.images) {
    const PackedPlan plan = packing.plan(image.height, image.width);
    packed.emplace_back(plan.bytes, std::uint8_t{0xc5});
    packing.write(plan, image.view(), packed.back().data());
    images.push_back(plan.describe(packed.back().data()));
    between += plan.middle_bytes;
  }
  std::vector<std::uint8_t> middle(between, 0x5c), output(tensor_bytes(work) * images.size());
  const std::int64_t blocks = arrange(images, middle.data());
  const PackedBatch batch = describe(work, images.data(), &normalization, output.data());
  for (std::int64_t block = 0; block < blocks; ++block)
    for (int thread = 0; thread < threads_per_block; ++thread) first_pass(batch, block, thread);
  for (std::int64_t block = 0; block < second_pass_blocks(batch) * batch.count; ++block)
    for (int thread = 0; thread < threads_per_block; ++thread) switch (batch.element) {
        case Element::float32: second_pass(batch, normalization.float32, block, thread); break;
        case Element::bfloat16: second_pass(batch, normalization.bfloat16, block, thread); break;
        case Element::float16: second_pass(batch, normalization.float16, block, thread); break;
      }
  return output;
}

#if SWSL_CUDA_KERNELS
bool has_device() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

// On the GPU, in memory that the host sees too.
std::vector<std::uint8_t> kernels(const Work& work) {
  std::vector<void*> owned;
  const auto shared = [&](std::size_t size) {
    void* memory = nullptr;
    if (cudaMallocManaged(&memory, size) != cudaSuccess) throw std::runtime_error("cudaMallocManaged failed");
    owned.push_back(memory);
    return static_cast<std::uint8_t*>(memory);
  };
  const Packing packing(work.spec);
  std::vector<PackedImage> images;
  std::size_t between = 0;
  for (const auto& image : work.images) {
    const PackedPlan plan = packing.plan(image.height, image.width);
    auto* memory = shared(plan.bytes);
    packing.write(plan, image.view(), memory);
    images.push_back(plan.describe(memory));
    between += plan.middle_bytes;
  }
  const std::int64_t blocks = arrange(images, shared(between));
  auto* descriptors = shared(images.size() * sizeof(PackedImage));
  std::memcpy(descriptors, images.data(), images.size() * sizeof(PackedImage));
  auto* normalization = reinterpret_cast<Normalization*>(shared(sizeof(Normalization)));
  *normalization = make_normalization(work.spec);
  std::vector<std::uint8_t> result(tensor_bytes(work) * images.size());
  auto* output = shared(result.size());
  const auto batch = describe(work, reinterpret_cast<PackedImage*>(descriptors), normalization, output);
  const char* error = run_passes(batch, blocks, nullptr);
  if (error == nullptr && cudaDeviceSynchronize() != cudaSuccess) error = "the kernels failed";
  if (error != nullptr) throw std::runtime_error(error);
  std::memcpy(result.data(), output, result.size());
  for (void* memory : owned) cudaFree(memory);
  return result;
}
#endif

void check_work(const Work& work, const std::string& what) {
  const auto right = expected(work);
  if (host_twin(work) != right) check::fail(__FILE__, __LINE__, "the host twin differs: ", what);
#if SWSL_CUDA_KERNELS
  if (has_device() && kernels(work) != right) check::fail(__FILE__, __LINE__, "the GPU differs: ", what);
#endif
}

const swsl::PreprocessSpec imagenet{224, 224, 0.875, Interpolation::bilinear, {0.485, 0.456, 0.406}, {0.229, 0.224, 0.225}};

}  // namespace

TEST(random_batches_equal_the_definition) {
  const char* cases = std::getenv("SWSL_FUZZ_CASES");
  for (std::uint32_t seed = 0; seed < (cases ? std::stoul(cases) : 300); ++seed)
    check_work(random_work(seed), "seed " + std::to_string(seed));
}

TEST(any_ratio_and_both_orders_of_the_passes) {
  std::mt19937 random(7);
  Work work{imagenet, ElementType::float16, Layout::channels_last, {}};
  for (const auto& [height, width] : {std::pair{12000, 300}, {300, 12000}, {1, 1}, {2000, 700}, {1213, 1546}, {224, 224}, {9, 4000}})
    work.images.push_back(noise(height, width, random));
  check_work(work, "fixed sizes");
  CHECK(geometry(imagenet, 2000, 700).vertical_first);
}

TEST(a_batch_of_one_image_and_one_pixel) {
  std::mt19937 random(8);
  swsl::PreprocessSpec spec = imagenet;
  spec.height = spec.width = 1;
  spec.crop_pct = 1;
  check_work({spec, ElementType::bfloat16, Layout::planar, {noise(5, 3, random)}}, "one pixel");
}

// Images that the GPU has decoded itself lie there whole, and only their tables are packed.
TEST(images_decoded_on_the_gpu_give_the_same) {
  for (std::uint32_t seed = 0; seed < 100; ++seed) {
    const Work work = random_work(1000 + seed);
    const Packing packing(work.spec);
    const Normalization normalization = make_normalization(work.spec);
    std::vector<std::vector<std::uint8_t>> decoded, tables;
    std::vector<PackedImage> images;
    std::size_t between = 0;
    for (const auto& image : work.images) {
      const std::size_t row = std::size_t{3} * image.width, stride = (row + 3) / 4 * 4 + 4 * (seed % 3);
      auto& pixels = decoded.emplace_back(stride * image.height + 16, std::uint8_t{0xc5});
      for (int y = 0; y < image.height; ++y) std::memcpy(pixels.data() + y * stride, image.pixels.data() + y * row, row);
      const PackedPlan plan = packing.plan_decoded(image.height, image.width, stride);
      packing.write_tables(plan, tables.emplace_back(plan.bytes, std::uint8_t{0xc5}).data());
      images.push_back(plan.describe(tables.back().data(), pixels.data()));
      between += plan.middle_bytes;
    }
    std::vector<std::uint8_t> middle(between, 0x5c), output(tensor_bytes(work) * images.size());
    const std::int64_t blocks = arrange(images, middle.data());
    const PackedBatch batch = describe(work, images.data(), &normalization, output.data());
    for (std::int64_t block = 0; block < blocks; ++block)
      for (int thread = 0; thread < threads_per_block; ++thread) first_pass(batch, block, thread);
    for (std::int64_t block = 0; block < second_pass_blocks(batch) * batch.count; ++block)
      for (int thread = 0; thread < threads_per_block; ++thread) switch (batch.element) {
          case Element::float32: second_pass(batch, normalization.float32, block, thread); break;
          case Element::bfloat16: second_pass(batch, normalization.bfloat16, block, thread); break;
          case Element::float16: second_pass(batch, normalization.float16, block, thread); break;
        }
    if (output != expected(work)) check::fail(__FILE__, __LINE__, "differs: seed ", seed);
  }
}
