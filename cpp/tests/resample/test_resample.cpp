// Every vector path gives the scalar path's bytes, reads nothing outside the source rectangle and writes
// nothing outside the tensor: random sizes, specs and contents.
//
//   ctest -C Fuzz -R fuzz               100,000 cases
//   SWSL_FUZZ_SEED=7 test_resample fuzz      one of them
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <swsl/preprocessor.h>
#include "check.h"
#include "resample/axis.h"
#include "resample/kernels/arithmetic.h"
#include "resample/kernels/tables.h"

using swsl::ElementType;
using swsl::Interpolation;
using swsl::Isa;
using swsl::Layout;

namespace {

// Bytes between two pages that may not be touched: at the end they meet the page behind, else the page
// before.
class GuardedBytes {
 public:
  GuardedBytes(std::size_t size, bool at_end) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t room = (size + page - 1) / page * page;
    mapped_ = room + 2 * page;
    base_ = static_cast<std::uint8_t*>(
        mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + page, room, PROT_READ | PROT_WRITE))
      throw std::runtime_error("cannot map memory for the test");
    data_ = base_ + page + (at_end ? room - size : 0);
  }
  ~GuardedBytes() { munmap(base_, mapped_); }
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;

  std::uint8_t* data() const { return data_; }

 private:
  std::uint8_t* base_;
  std::uint8_t* data_;
  std::size_t mapped_;
};

struct Case {
  swsl::PreprocessSpec spec;
  int height, width;
  int gap;  // bytes between rows
  int content;
  bool at_end;
  ElementType type;
  Layout layout;
  std::uint32_t seed;
};

std::string describe(const Case& c) {
  std::ostringstream text;
  text << c.height << " × " << c.width << " to " << c.spec.height << " × " << c.spec.width << ", crop_pct "
       << c.spec.crop_pct << (c.spec.interpolation == Interpolation::bicubic ? ", bicubic" : ", bilinear")
       << ", gap " << c.gap << ", content " << c.content << ", at_end " << c.at_end << ", type "
       << static_cast<int>(c.type) << ", layout " << static_cast<int>(c.layout)
       << ", SWSL_FUZZ_SEED=" << c.seed;
  return text.str();
}

Case random_case(std::uint32_t seed) {
  std::mt19937 random(seed);
  const auto uniform = [&](int low, int high) { return std::uniform_int_distribution(low, high)(random); };
  // As many cases between 1 and 10 as between 100 and 1000.
  const auto spread = [&](int high) {
    return static_cast<int>(std::exp(std::uniform_real_distribution(0.0, std::log(high + 0.99))(random)));
  };
  Case c{};
  c.seed = seed;
  const bool square = uniform(0, 2) > 0;
  c.spec.height = spread(256);
  c.spec.width = square ? c.spec.height : spread(256);
  constexpr double crops[] = {0.875, 1.0, 0.9, 0.95, 0.5, 1.25, 0.3};
  c.spec.crop_pct = std::min<double>(crops[uniform(0, 6)], std::min(c.spec.height, c.spec.width));
  c.spec.interpolation = uniform(0, 1) ? Interpolation::bicubic : Interpolation::bilinear;
  if (uniform(0, 1)) {
    c.spec.mean = {0.485, 0.456, 0.406};
    c.spec.std = {0.229, 0.224, 0.225};
  } else {
    for (int i = 0; i < 3; ++i) {
      c.spec.mean[i] = uniform(-200, 200) / 100.0;
      c.spec.std[i] = uniform(1, 1000) / 317.0 * (uniform(0, 9) ? 1 : -1);
    }
  }
  const int longest = uniform(0, 19) ? 600 : 3000;
  c.height = spread(longest);
  c.width = spread(longest);
  c.gap = uniform(0, 2) ? 0 : uniform(1, 100);
  c.content = uniform(0, 5);
  c.at_end = uniform(0, 1);
  c.type = static_cast<ElementType>(uniform(0, 2));
  c.layout = static_cast<Layout>(uniform(0, 1));
  return c;
}

void fill(std::uint8_t* bytes, std::size_t size, int content, std::uint32_t seed) {
  std::mt19937 random(seed + 1);
  for (std::size_t i = 0; i < size; ++i) {
    const std::uint32_t value = random();
    bytes[i] = static_cast<std::uint8_t>(content == 0   ? 255                    // sums at their largest
                                         : content == 1 ? (value & 1 ? 255 : 0)  // overshoots
                                         : content == 2 ? (i / 3 % 2 ? 255 : 0)  // columns
                                         : content == 3 ? i * 7 / 5              // slopes
                                                        : value);
  }
}

int element_size(ElementType type) { return type == ElementType::float32 ? 4 : 2; }

constexpr int canary_bytes = 64;

// The tensor between its canaries.
std::vector<std::uint8_t> run(const Case& c, Isa isa, const swsl::ImageView& image) {
  const std::size_t size = std::size_t{3} * c.spec.height * c.spec.width * element_size(c.type);
  std::vector<std::uint8_t> output(size + 2 * canary_bytes, 0xc5);
  swsl::Preprocessor(c.spec, isa)(image, output.data() + canary_bytes, c.type, c.layout);
  return output;
}

std::vector<Isa> vector_paths() {
  std::vector<Isa> result;
  for (const Isa isa : {Isa::neon, Isa::avx2, Isa::avx512})
    if (swsl::isa_available(isa)) result.push_back(isa);
  return result;
}

void check_case(const Case& c) {
  // Only the source rectangle is in memory.
  const swsl::Rect needed = swsl::Preprocessor(c.spec, Isa::scalar).source_rectangle(c.height, c.width);
  const std::ptrdiff_t stride = std::ptrdiff_t{3} * c.width + c.gap;
  const std::size_t size = (needed.height - 1) * stride + std::ptrdiff_t{3} * needed.width;
  const GuardedBytes pixels(size, c.at_end);
  fill(pixels.data(), size, c.content, c.seed);
  const auto first = reinterpret_cast<std::uintptr_t>(pixels.data()) - needed.top * stride - 3 * needed.left;
  const swsl::ImageView image{reinterpret_cast<const std::uint8_t*>(first), c.height, c.width, stride};

  const auto expected = run(c, Isa::scalar, image);
  for (int i = 0; i < canary_bytes; ++i)
    if (expected[i] != 0xc5 || expected[expected.size() - 1 - i] != 0xc5)
      check::fail(__FILE__, __LINE__, "scalar writes outside the tensor: ", describe(c));

  // Rows have columns in between that are not needed: what they hold must not matter.
  for (int y = 0; y + 1 < needed.height; ++y)
    std::memset(pixels.data() + y * stride + 3 * needed.width, 0x5a, stride - 3 * needed.width);
  for (const Isa isa : vector_paths())
    if (run(c, isa, image) != expected)
      check::fail(__FILE__, __LINE__, swsl::isa_name(isa), " differs from scalar: ", describe(c));
}

long from_environment(const char* name, long otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atol(text) : otherwise;
}

}  // namespace

TEST(fuzz) {
  for (const Isa isa : {Isa::neon, Isa::avx2, Isa::avx512})
    if (!swsl::isa_available(isa))
      std::printf("not tested, this CPU lacks it: %s\n", swsl::isa_name(isa).data());
  const long seed = from_environment("SWSL_FUZZ_SEED", -1);
  if (seed >= 0) {
    check_case(random_case(static_cast<std::uint32_t>(seed)));
    return;
  }
  const long cases = from_environment("SWSL_FUZZ_CASES", 400);
  CHECK(cases > 0);
  for (long i = 0; i < cases; ++i) check_case(random_case(static_cast<std::uint32_t>(i)));
}

TEST(common_photographs_in_every_type_and_layout) {
  const swsl::PreprocessSpec imagenet{
      224, 224, 0.875, Interpolation::bilinear, {0.485, 0.456, 0.406}, {0.229, 0.224, 0.225}};
  for (const auto& [height, width] :
       {std::pair{1213, 1546}, {392, 500}, {500, 392}, {256, 256}, {900, 300}, {3000, 1000}})
    for (const Interpolation interpolation : {Interpolation::bilinear, Interpolation::bicubic})
      for (const ElementType type : {ElementType::float32, ElementType::bfloat16, ElementType::float16})
        for (const Layout layout : {Layout::planar, Layout::channels_last}) {
          Case c{imagenet, height, width, 0, 5, true, type, layout, 7};
          c.spec.interpolation = interpolation;
          check_case(c);
        }
}

TEST(coefficients_fit_three_signed_bytes) {
  constexpr std::int32_t limit = (1 << 23) - (1 << 15) - (1 << 7);
  for (const Interpolation interpolation : {Interpolation::bilinear, Interpolation::bicubic})
    for (int source = 1; source <= 70; ++source)
      for (int resized = 1; resized <= 70; ++resized) {
        const auto axis = swsl::resample::make_axis({source, resized, 0, resized, 0}, interpolation);
        for (const std::int32_t k : axis.coefficients) CHECK(k > -limit && k < limit);
      }
}

TEST(row_tables_hold_the_coefficients) {
  const auto axis = swsl::resample::make_axis({431, 97, 9, 70, 0}, Interpolation::bicubic);
  const auto bytes = swsl::resample::make_row_bytes(axis);
  const auto halves = swsl::resample::make_row_halves(axis);
  for (int y = 0; y < 70; ++y) {
    std::int64_t sum = 0, from_bytes = 0, from_halves = 0;
    for (int t = 0; t < axis.taps[y]; ++t)
      sum += axis.coefficients[y * axis.stride + t] * std::int64_t{t + 1};
    const int start = axis.start[y] - axis.begin;
    for (int g = 0; g < bytes.count[y]; ++g)
      for (int r = 0; r < 4; ++r) {
        const std::int64_t tap = 4 * (bytes.first[y] + g) + r - start + 1;
        const auto byte = [&](int part) {
          return static_cast<std::int8_t>(bytes.coefficients[y * bytes.stride + 3 * g + part] >> (8 * r));
        };
        const auto half = [&](int part) {
          return static_cast<std::int16_t>(
              halves.coefficients[y * halves.stride + 4 * g + r / 2 * 2 + part] >> (16 * (r % 2)));
        };
        from_bytes += tap * (byte(0) + 256 * byte(1) + 65536 * byte(2));
        from_halves += tap * (half(0) + std::int64_t{65536} * half(1));
      }
    CHECK_EQ(from_bytes, sum);
    CHECK_EQ(from_halves, sum);
  }
}
