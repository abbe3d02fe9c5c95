// The definition: geometry, arithmetic small enough to check by hand, what is read, what is refused. That it
// equals Pillow and torchvision is tested in Python, where those are.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include <swsl/preprocessor.h>
#include "check.h"
#include "resample/axis.h"
#include "resample/prepared.h"

using swsl::ElementType;
using swsl::Interpolation;
using swsl::Isa;
using swsl::Layout;
using swsl::Preprocessor;
using swsl::PreprocessSpec;

static std::atomic<long> allocations{0};

// Not inlined, or the compiler sees `free` under memory that it knows from `new`.
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size ? size : 1)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

const PreprocessSpec imagenet{
    224, 224, 0.875, Interpolation::bilinear, {0.485, 0.456, 0.406}, {0.229, 0.224, 0.225}};

// x / 255 and nothing else, so that pixels can be read off the result.
PreprocessSpec plain(int height, int width, Interpolation interpolation = Interpolation::bilinear) {
  return {height, width, 1.0, interpolation, {0, 0, 0}, {1, 1, 1}};
}

// Grey pixels, row by row.
swsl::Image grey(int height, int width, const std::vector<int>& values) {
  swsl::Image image{height, width, {}};
  for (const int value : values)
    for (int c = 0; c < 3; ++c) image.pixels.push_back(static_cast<std::uint8_t>(value));
  return image;
}

swsl::Image noise(int height, int width, std::uint32_t seed = 1) {
  swsl::Image image{height, width, std::vector<std::uint8_t>(std::size_t{3} * height * width)};
  for (auto& byte : image.pixels) {
    seed = seed * 1664525u + 1013904223u;
    byte = static_cast<std::uint8_t>(seed >> 24);
  }
  return image;
}

std::vector<float> run(const PreprocessSpec& spec, const swsl::Image& image, Isa isa = Isa::scalar) {
  std::vector<float> output(std::size_t{3} * spec.height * spec.width);
  Preprocessor(spec, isa)(image.view(), output.data());
  return output;
}

std::string pixels_of(const std::vector<float>& values) {  // the first plane's
  std::string text;
  for (std::size_t i = 0; i < values.size() / 3; ++i) {
    text += text.empty() ? "" : " ";
    text += std::to_string(std::lround(values[i] * 255));
  }
  return text;
}

std::string sizes(const PreprocessSpec& spec, int height, int width) {
  const auto geometry = swsl::resample::geometry(spec, height, width);
  const auto axis = [](const swsl::resample::AxisGeometry& a) {
    return std::to_string(a.resized) + ": " + std::to_string(a.first) + "+" + std::to_string(a.count) +
           (a.padding ? " behind " + std::to_string(a.padding) : "");
  };
  return axis(geometry.rows) + ", " + axis(geometry.columns) +
         (geometry.vertical_first ? ", vertical first" : "");
}

}  // namespace

TEST(geometry_is_torchvisions_for_square_targets) {
  CHECK_EQ(sizes(imagenet, 1213, 1546), "256: 16+224, 326: 51+224");
  CHECK_EQ(sizes(imagenet, 1546, 1213), "326: 51+224, 256: 16+224");
  CHECK_EQ(sizes(imagenet, 256, 256), "256: 16+224, 256: 16+224");
  CHECK_EQ(sizes(imagenet, 1, 5), "256: 16+224, 1280: 528+224");
}

TEST(geometry_rounds_the_crop_to_even_and_truncates_the_longer_side) {
  CHECK_EQ(sizes(imagenet, 256, 257), "256: 16+224, 257: 16+224");  // 16.5
  CHECK_EQ(sizes(imagenet, 256, 259), "256: 16+224, 259: 18+224");  // 17.5
  CHECK_EQ(sizes(imagenet, 427, 641), "256: 16+224, 384: 80+224");  // 384.3
}

TEST(geometry_is_timms_for_other_targets) {
  PreprocessSpec spec = imagenet;
  spec.width = 192;  // 256 × 219
  CHECK_EQ(sizes(spec, 500, 400), "274: 25+224, 219: 14+192");
  CHECK_EQ(sizes(spec, 1392, 256), "1191: 484+224, 219: 14+192, vertical first");
}

TEST(geometry_pads_what_is_smaller_than_the_crop) {
  PreprocessSpec spec = imagenet;
  spec.crop_pct = 1.3;  // 172
  CHECK_EQ(sizes(spec, 300, 300), "172: 0+172 behind 26, 172: 0+172 behind 26");
  CHECK_EQ(sizes(spec, 300, 500), "172: 0+172 behind 26, 286: 31+224");
}

TEST(the_order_of_passes_is_pillow_13s) {
  CHECK_EQ(sizes(plain(100, 100), 400, 200), "200: 50+100, 100: 0+100");  // loses 200 rows, 100 columns
  CHECK_EQ(sizes(plain(100, 100), 402, 200), "201: 50+100, 100: 0+100, vertical first");
  CHECK_EQ(sizes(plain(100, 100), 200, 800), "100: 0+100, 400: 150+100");
}

TEST(a_filter_small_enough_to_check_by_hand) {
  // Two pixels to one: the mean, 15.5, rounds up.
  CHECK_EQ(pixels_of(run(plain(1, 1), grey(2, 2, {10, 21, 10, 21}))), "16");
  // Four to two: the triangle is 4 wide, weights 3 3 1 of 7 at the borders: (3·70 + 3·70 + 140) / 7, (70 +
  // 6·140) / 7.
  const std::vector<int> row{70, 70, 140, 140};
  std::vector<int> all;
  for (int y = 0; y < 4; ++y) all.insert(all.end(), row.begin(), row.end());
  CHECK_EQ(pixels_of(run(plain(2, 2), grey(4, 4, all))), "80 130 80 130");
  // Two to four, bilinear: 3/4 and 1/4 between the pixels, the border's own value outside.
  CHECK_EQ(pixels_of(run(plain(4, 4), grey(2, 2, {0, 100, 0, 100}))),
           "0 25 75 100 0 25 75 100 0 25 75 100 0 25 75 100");
}

TEST(bicubic_overshoots_and_is_clipped) {
  // Its weights are -9 111 29 -3 of 128: beside the step, 255 × (29 - 3) / 128; where it swings below 0,
  // black.
  std::vector<int> all;
  for (int y = 0; y < 4; ++y) all.insert(all.end(), {0, 0, 255, 255});
  const auto steep = run(plain(8, 8, Interpolation::bicubic), grey(4, 4, all));
  CHECK_EQ(pixels_of({steep.begin(), steep.begin() + 24}), "0 0 0 52 203 255 255 255");
  for (auto& value : all) value = 100 + value / 5;
  const auto soft = run(plain(8, 8, Interpolation::bicubic), grey(4, 4, all));
  CHECK(soft[2] * 255 < 99.5f && soft[5] * 255 > 151.5f);
}

TEST(a_constant_image_stays_constant) {
  for (const Interpolation interpolation : {Interpolation::bilinear, Interpolation::bicubic})
    for (const int value : {0, 1, 127, 254, 255}) {
      PreprocessSpec spec = imagenet;
      spec.interpolation = interpolation;
      swsl::Image image{331, 517, std::vector<std::uint8_t>(3 * 331 * 517, static_cast<std::uint8_t>(value))};
      const auto output = run(spec, image);
      for (int c = 0; c < 3; ++c) {
        const float expected = (static_cast<float>(value) / 255.0f - static_cast<float>(spec.mean[c])) /
                               static_cast<float>(spec.std[c]);
        for (int i = 0; i < 224 * 224; ++i) CHECK_EQ(output[c * 224 * 224 + i], expected);
      }
    }
}

TEST(an_image_of_the_right_size_keeps_its_pixels) {
  const auto image = noise(64, 64);
  for (const Interpolation interpolation : {Interpolation::bilinear, Interpolation::bicubic}) {
    const auto output = run(plain(64, 64, interpolation), image);
    for (int c = 0; c < 3; ++c)
      for (int i = 0; i < 64 * 64; ++i)
        CHECK_EQ(output[c * 64 * 64 + i], static_cast<float>(image.pixels[3 * i + c]) / 255.0f);
  }
}

TEST(padding_is_black_before_normalisation) {
  PreprocessSpec spec = imagenet;
  spec.crop_pct = 2;  // 112, behind 56
  const auto output = run(spec, noise(300, 300));
  const float black = (0.0f - 0.485f) / 0.229f;
  CHECK_EQ(output[0], black);
  CHECK_EQ(output[55 * 224 + 100], black);
  CHECK_EQ(output[100 * 224 + 55], black);
  CHECK(output[56 * 224 + 56] != black);
}

TEST(channels_last_holds_the_same_values) {
  const auto image = noise(300, 411);
  const Preprocessor preprocessor(imagenet, Isa::scalar);
  const auto planar = run(imagenet, image);
  std::vector<float> last(planar.size());
  preprocessor(image.view(), last.data(), ElementType::float32, Layout::channels_last);
  for (int i = 0; i < 224 * 224; ++i)
    for (int c = 0; c < 3; ++c) CHECK_EQ(last[3 * i + c], planar[c * 224 * 224 + i]);
}

TEST(sixteen_bits_round_to_nearest_even) {
  // 1 + 2^-8 and 1 + 3·2^-8 lie halfway between bfloat16's neighbours, 1 + 2^-11 and 1 + 3·2^-11 between
  // float16's.
  const auto elements = [](double mean, double std, ElementType type) {
    const PreprocessSpec spec{1, 1, 1.0, Interpolation::bilinear, {mean, mean, mean}, {std, std, std}};
    std::uint16_t output[3];
    Preprocessor(spec, Isa::scalar)(grey(1, 1, {255}).view(), output, type, Layout::planar);
    return output[0];
  };
  const auto value = [&](double wanted, ElementType type) { return elements(1 - wanted, 1, type); };
  CHECK_EQ(value(1 + 0x1p-8, ElementType::bfloat16), 0x3f80);
  CHECK_EQ(value(1 + 0x3p-8, ElementType::bfloat16), 0x3f82);
  CHECK_EQ(value(-2.5, ElementType::bfloat16), 0xc020);
  CHECK_EQ(value(1 + 0x1p-11, ElementType::float16), 0x3c00);
  CHECK_EQ(value(1 + 0x3p-11, ElementType::float16), 0x3c02);
  CHECK_EQ(value(2 - 0x1p-11, ElementType::float16), 0x4000);  // carries into the exponent
  CHECK_EQ(value(0x1p-15, ElementType::float16), 0x0200);      // subnormal
  CHECK_EQ(value(0, ElementType::float16), 0x0000);
  CHECK_EQ(elements(0, 1e-5, ElementType::float16), 0x7c00);  // 100000: infinity
  CHECK_EQ(elements(0, -1e-5, ElementType::float16), 0xfc00);
}

TEST(nothing_outside_the_source_rectangle_matters) {
  for (const auto& [height, width] : {std::pair{500, 392}, {392, 500}, {100, 1000}, {1000, 100}, {30, 40}}) {
    const Preprocessor preprocessor(imagenet, Isa::scalar);
    auto image = noise(height, width);
    const auto expected = run(imagenet, image);
    const swsl::Rect needed = preprocessor.source_rectangle(height, width);
    CHECK(needed.top >= 0 && needed.left >= 0 && needed.height > 0 && needed.width > 0);
    CHECK(needed.top + needed.height <= height && needed.left + needed.width <= width);
    for (int y = 0; y < height; ++y)
      for (int x = 0; x < width; ++x)
        if (y < needed.top || y >= needed.top + needed.height || x < needed.left ||
            x >= needed.left + needed.width)
          for (int c = 0; c < 3; ++c) image.pixels[3 * (std::size_t{1} * y * width + x) + c] ^= 0xff;
    CHECK(run(imagenet, image) == expected);
  }
}

TEST(source_rectangle_is_not_larger_than_needed) {
  // 0.875 of the shorter side and the filter's reach at both ends.
  const swsl::Rect needed = Preprocessor(imagenet, Isa::scalar).source_rectangle(1213, 1546);
  const double scale = 1213 / 256.0;
  CHECK(needed.height >= 224 * scale && needed.height <= 224 * scale + 2 * scale);
  CHECK(needed.width >= 224 * scale && needed.width <= 224 * scale + 2 * scale);
}

TEST(rows_may_lie_apart_or_backwards_or_be_the_same) {
  const auto image = noise(77, 91);
  swsl::Image flipped{77, 91, {}}, repeated{77, 91, {}};
  std::vector<std::uint8_t> spaced(77 * 300, 0xee);
  for (int y = 0; y < 77; ++y) {
    const auto row = image.pixels.begin() + y * 273, opposite = image.pixels.begin() + (76 - y) * 273;
    std::copy(row, row + 273, spaced.begin() + y * 300);
    flipped.pixels.insert(flipped.pixels.end(), opposite, opposite + 273);
    repeated.pixels.insert(repeated.pixels.end(), image.pixels.begin(), image.pixels.begin() + 273);
  }
  for (const Isa isa : {Isa::scalar, Isa::neon, Isa::avx2, Isa::avx512}) {
    if (!swsl::isa_available(isa)) continue;
    std::vector<float> output(3 * 224 * 224);
    const Preprocessor preprocessor(imagenet, isa);
    preprocessor({spaced.data(), 77, 91, 300}, output.data());
    CHECK(output == run(imagenet, image));
    preprocessor({image.pixels.data() + 76 * 273, 77, 91, -273}, output.data());
    CHECK(output == run(imagenet, flipped));
    preprocessor({image.pixels.data(), 77, 91, 0}, output.data());
    CHECK(output == run(imagenet, repeated));
  }
}

TEST(repeated_sizes_allocate_nothing) {
  const auto wide = noise(392, 500), tall = noise(1200, 300);  // both orders of the passes
  std::vector<float> output(3 * 224 * 224);
  for (const Isa isa : {Isa::scalar, Isa::neon, Isa::avx2, Isa::avx512}) {
    if (!swsl::isa_available(isa)) continue;
    const Preprocessor preprocessor(imagenet, isa);
    const auto both = [&] {
      preprocessor(wide.view(), output.data());
      preprocessor(tall.view(), output.data());
    };
    both();
    const long before = allocations;
    for (int i = 0; i < 5; ++i) both();
    CHECK_EQ(allocations - before, 0);
  }
}

TEST(the_cache_shares_axes_and_is_bounded) {
  using namespace swsl::resample;
  AxisCache cache(Interpolation::bilinear, swsl::default_isa());
  const AxisGeometry often{1000, 256, 16, 224, 0};
  const std::weak_ptr<const PreparedAxis> kept = cache.get(often, Pass::vertical);
  const std::weak_ptr<const PreparedAxis> dropped = cache.get({999, 256, 16, 224, 0}, Pass::vertical);
  CHECK(cache.get(often, Pass::horizontal) != kept.lock());
  for (int length = 1; length < 200; ++length) {
    cache.get({length, 256, 16, 224, 0}, Pass::vertical);
    CHECK(cache.get(often, Pass::vertical) == kept.lock());
  }
  CHECK(dropped.expired());
}

TEST(one_preprocessor_serves_many_threads) {
  const Preprocessor preprocessor(imagenet);
  std::vector<swsl::Image> images;
  std::vector<std::vector<float>> expected;
  for (int i = 0; i < 6; ++i) {
    images.push_back(noise(100 + 61 * i, 700 - 97 * i, i));
    expected.push_back(run(imagenet, images.back()));
  }
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      std::vector<float> output(3 * 224 * 224);
      for (int i = 0; i < 12; ++i) {
        const int which = (i + t) % 6;
        preprocessor(images[which].view(), output.data());
        if (output != expected[which]) ++wrong;
      }
    });
  for (auto& thread : threads) thread.join();
  CHECK_EQ(wrong.load(), 0);
}

TEST(a_spec_that_means_nothing_is_refused) {
  const auto with = [](auto change) {
    PreprocessSpec spec = imagenet;
    change(spec);
    return [spec] { return Preprocessor(spec, Isa::scalar); };
  };
  const double infinity = std::numeric_limits<double>::infinity();
  CHECK_THROWS(std::invalid_argument, "input_size is 0 × 224", with([](auto& s) { s.height = 0; })());
  CHECK_THROWS(std::invalid_argument, "input_size is 224 × 1000000",
               with([](auto& s) { s.width = 1'000'000; })());
  CHECK_THROWS(std::invalid_argument, "crop_pct is 0.000000", with([](auto& s) { s.crop_pct = 0; })());
  CHECK_THROWS(std::invalid_argument, "crop_pct", with([](auto& s) { s.crop_pct = std::nan(""); })());
  CHECK_THROWS(std::invalid_argument, "crop_pct", with([](auto& s) { s.crop_pct = 1000; })());
  CHECK_THROWS(std::invalid_argument, "crop_pct", with([](auto& s) { s.crop_pct = 1e-9; })());
  CHECK_THROWS(std::invalid_argument, "interpolation is 7",
               with([](auto& s) { s.interpolation = static_cast<Interpolation>(7); })());
  CHECK_THROWS(std::invalid_argument, "mean[1]", with([&](auto& s) { s.mean[1] = infinity; })());
  CHECK_THROWS(std::invalid_argument, "std[2] is 0.000000", with([](auto& s) { s.std[2] = 0; })());
  CHECK_THROWS(std::invalid_argument, "std[0]", with([](auto& s) { s.std[0] = 1e-60; })());  // 0 in float32
}

TEST(an_image_without_pixels_is_refused) {
  const Preprocessor preprocessor(imagenet, Isa::scalar);
  const auto image = noise(3, 4);
  std::vector<float> output(3 * 224 * 224);
  CHECK_THROWS(std::invalid_argument, "image is 0 × 4",
               (preprocessor({image.pixels.data(), 0, 4, 12}, output.data()), 0));
  CHECK_THROWS(std::invalid_argument, "image is 3 × -1", preprocessor.source_rectangle(3, -1));
  CHECK_THROWS(std::invalid_argument, "image.data", (preprocessor({nullptr, 3, 4, 12}, output.data()), 0));
  CHECK_THROWS(std::invalid_argument, "output", (preprocessor(image.view(), nullptr), 0));
  CHECK_THROWS(std::invalid_argument, "too elongated", preprocessor.source_rectangle(1, 100'000'000));
}

TEST(the_environment_names_the_instruction_set) {
  const char* const before = std::getenv("SWSL_ISA");
  const std::string kept = before ? before : "";
  setenv("SWSL_ISA", "scalar", 1);
  CHECK(Preprocessor(imagenet).isa() == Isa::scalar);
  setenv("SWSL_ISA", "sse9", 1);
  CHECK_THROWS(std::invalid_argument, "SWSL_ISA is \"sse9\", expected scalar, neon, avx2 or avx512",
               Preprocessor(imagenet));
  setenv("SWSL_ISA", "avx512", 1);
  if (swsl::isa_available(Isa::avx512))
    CHECK(Preprocessor(imagenet).isa() == Isa::avx512);
  else
    CHECK_THROWS(std::invalid_argument, "avx512", Preprocessor(imagenet));
  unsetenv("SWSL_ISA");
  CHECK(swsl::isa_available(Preprocessor(imagenet).isa()));
  if (before) setenv("SWSL_ISA", kept.c_str(), 1);
}
