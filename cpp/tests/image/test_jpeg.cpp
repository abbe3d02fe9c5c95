#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "check.h"

#include <swsl/image.h>

#if SWSL_WITH_JPEG && SWSL_WITH_PNG

#include "image_fixtures.h"

namespace {

using fixtures::Bytes;
using fixtures::decode, fixtures::error_of, fixtures::same_region, fixtures::samplings;
using fixtures::JpegKind;

swsl::Rect random_rectangle(std::mt19937& random, int height, int width) {
  const auto below = [&](int limit) { return static_cast<int>(random() % static_cast<unsigned>(limit)); };
  swsl::Rect rect{0, 0, 1 + below(height), 1 + below(width)};
  rect.top = below(height - rect.height + 1);
  rect.left = below(width - rect.width + 1);
  return rect;
}

}  // namespace

TEST(jpeg_pixels_are_those_of_a_plain_libjpeg_decode) {
  for (const auto& sampling : samplings)
    for (const bool progressive : {false, true})
      for (const int restart_interval : {0, 3})
        for (const auto& [height, width] : {std::pair{1, 1}, {1, 40}, {40, 1}, {50, 67}}) {
          const JpegKind kind{3, sampling, progressive, restart_interval};
          const Bytes bytes = fixtures::jpeg(fixtures::picture(height, width, 3), height, width, kind);
          const swsl::Image image = decode(bytes);
          CHECK_EQ(image.height, height);
          CHECK_EQ(image.width, width);
          CHECK(image.pixels == fixtures::plain_jpeg_decode(bytes));
        }
  const Bytes grey = fixtures::jpeg(fixtures::picture(20, 30, 1), 20, 30, {1, {{1, 1}}});
  CHECK(decode(grey).pixels == fixtures::plain_jpeg_decode(grey));
  const Bytes rgb = fixtures::jpeg(fixtures::picture(20, 30, 3), 20, 30, {.transform = false});
  CHECK(decode(rgb).pixels == fixtures::plain_jpeg_decode(rgb));
}

TEST(jpeg_cmyk_is_taken_as_inverted) {
  for (const bool transform : {false, true}) {
    const JpegKind kind{.channels = 4, .sampling = {{1, 1}, {1, 1}, {1, 1}, {1, 1}}, .transform = transform};
    const Bytes bytes = fixtures::jpeg(fixtures::picture(20, 30, 4), 20, 30, kind);
    const Bytes stored = fixtures::plain_jpeg_decode(bytes);
    const swsl::Image image = decode(bytes);
    for (std::size_t pixel = 0; pixel < 20 * 30; ++pixel)
      for (std::size_t c = 0; c < 3; ++c) {
        // light × (1 - ink), the product rounded to nearest.
        const int light = stored[4 * pixel + 3], ink = 255 - stored[4 * pixel + c];
        CHECK_EQ(int{image.pixels[3 * pixel + c]}, light - (2 * ink * light + 255) / 510);
      }
  }
}

TEST(jpeg_region_equals_the_whole) {
  std::mt19937 random(7);
  swsl::ImageDecoder decoder;
  for (const auto& sampling : samplings)
    for (const bool progressive : {false, true})
      for (const int restart_interval : {0, 1, 6})
        for (int i = 0; i < 12; ++i) {
          const int height = 1 + static_cast<int>(random() % 150),
                    width = 1 + static_cast<int>(random() % 150);
          const JpegKind kind{3, sampling, progressive, restart_interval};
          const Bytes bytes =
              fixtures::jpeg(fixtures::picture(height, width, 3, random()), height, width, kind);
          const swsl::Image whole = decode(bytes);
          const swsl::Rect needed = random_rectangle(random, height, width);
          decoder.open(bytes.data(), bytes.size());
          CHECK(same_region(decoder.decode(needed), whole, needed));
          CHECK(same_region(decoder.decode(), whole, {0, 0, height, width}));
        }
}

TEST(jpeg_truncated_anywhere_is_an_error_whatever_is_needed) {
  for (const bool progressive : {false, true})
    for (const int restart_interval : {0, 2}) {
      const JpegKind kind{3, samplings[2], progressive, restart_interval};
      const Bytes bytes = fixtures::jpeg(fixtures::picture(48, 60, 3), 48, 60, kind);
      const swsl::Rect top_rows{0, 0, 5, 60};
      // Without its end marker alone the file is whole.
      for (std::size_t size = 3; size < bytes.size() - 3; ++size) {
        const Bytes cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
        const std::string error = error_of(cut);
        CHECK(error.starts_with("test.img: truncated JPEG: its " + std::to_string(size) + " bytes end"));
        CHECK(error_of(cut, &top_rows).starts_with("test.img: truncated JPEG"));
      }
      CHECK_EQ(error_of(bytes, &top_rows), "");
    }
}

TEST(jpeg_without_tables_does_not_borrow_the_last_ones) {
  Bytes bytes = fixtures::jpeg(fixtures::picture(16, 16, 3), 16, 16, {});
  swsl::ImageDecoder decoder;
  decoder.open(bytes.data(), bytes.size());
  decoder.decode();
  const Bytes quantisation = {0xFF, 0xDB};
  const auto at = std::search(bytes.begin(), bytes.end(), quantisation.begin(), quantisation.end());
  at[1] = 0xFE;  // now a comment
  CHECK_THROWS(swsl::ImageError, "test.img: broken JPEG: ",
               (decoder.open(bytes.data(), bytes.size(), "test.img"), decoder.decode()));
}

TEST(jpeg_with_two_components_is_refused) {
  Bytes bytes = fixtures::jpeg(fixtures::picture(8, 8, 3), 8, 8, {});
  const Bytes frame = {0xFF, 0xC0, 0, 17};
  const auto at = std::search(bytes.begin(), bytes.end(), frame.begin(), frame.end());
  at[3] = 14;
  at[9] = 2;
  bytes.erase(at + 16, at + 19);
  const Bytes scan = {0xFF, 0xDA, 0, 12};
  const auto start = std::search(bytes.begin(), bytes.end(), scan.begin(), scan.end());
  start[3] = 10;
  start[4] = 2;
  bytes.erase(start + 9, start + 11);
  CHECK_THROWS(swsl::ImageError,
               "test.img: a JPEG of 2 components; expected 1 (grey), 3 (colour) or 4 (CMYK)", decode(bytes));
}

TEST(dct_scaling_stays_above_twice_the_target_and_is_off_by_default) {
  const Bytes bytes = fixtures::jpeg(fixtures::picture(410, 300, 3), 410, 300, {3, samplings[2]});
  for (const auto& [target, height, width] : {std::array{0, 410, 300},
                                              {150, 410, 300},
                                              {151, 410, 300},
                                              {75, 205, 150},
                                              {76, 410, 300},
                                              {37, 103, 75},
                                              {19, 52, 38},
                                              {1, 52, 38}}) {
    swsl::ImageDecoder decoder({.dct_scaling = target});
    decoder.open(bytes.data(), bytes.size());
    CHECK_EQ(decoder.height(), height);
    CHECK_EQ(decoder.width(), width);
    const swsl::Image whole = decode(bytes, {.dct_scaling = target});
    const swsl::Rect needed{height / 4, width / 5, height / 2, width / 2};
    CHECK(same_region(decoder.decode(needed), whole, needed));
  }
  CHECK_THROWS(std::invalid_argument, "dct_scaling is -1", swsl::ImageDecoder({.dct_scaling = -1}));
}

TEST(progressive_jpegs_that_lack_scans_are_smoothed_as_pillow_does_or_refused) {
  std::mt19937 random(6);
  swsl::ImageDecoder decoder;
  int lacking = 0;
  for (const auto& sampling : samplings) {
    const Bytes whole = fixtures::jpeg(fixtures::picture(150, 100, 3), 150, 100, {3, sampling, true});
    std::vector<std::size_t> scans;
    for (std::size_t i = 0; i + 1 < whole.size(); ++i)
      if (whole[i] == 0xFF && whole[i + 1] == 0xDA) scans.push_back(i);
    for (std::size_t i = 1; i < scans.size(); ++i) {
      Bytes part(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(scans[i]));
      part.insert(part.end(), {0xFF, 0xD9});
      const std::string error = error_of(part);
#if LIBJPEG_TURBO_VERSION_NUMBER >= 3000000
      const swsl::Rect needed = random_rectangle(random, 150, 100);
      decoder.open(part.data(), part.size());
      CHECK_EQ(error, "");
      CHECK(same_region(decoder.decode(needed), decode(part), needed));
#else
      CHECK(error.empty() ||
            error.starts_with(
                "test.img: a progressive JPEG that lacks scans; swsl was built with libjpeg-turbo 2."));
      if (!error.empty())
        CHECK_THROWS(swsl::UnsupportedFormat, "which smooths what is missing otherwise than Pillow's",
                     decode(part));
#endif
      lacking += !error.empty();
    }
    CHECK_EQ(error_of(whole), "");
  }
  CHECK(lacking > 0 || LIBJPEG_TURBO_VERSION_NUMBER >= 3000000);
}

TEST(a_jpeg_of_more_than_100_scans_is_refused) {
  Bytes bytes = fixtures::jpeg(fixtures::picture(16, 16, 1), 16, 16, {1, {{1, 1}}, true});
  const auto scan = [&](std::size_t from) {
    while (bytes[from] != 0xFF || bytes[from + 1] != 0xDA) ++from;
    return from;
  };
  const std::size_t first = scan(0), second = scan(first + 1);
  // The first one, of the brightness of blocks, over and over, with the tables between the two.
  const Bytes again(bytes.begin() + static_cast<std::ptrdiff_t>(first),
                    bytes.begin() + static_cast<std::ptrdiff_t>(second));
  std::size_t count = 0;
  for (std::size_t i = 0; i + 1 < bytes.size(); ++i) count += bytes[i] == 0xFF && bytes[i + 1] == 0xDA;
  for (; count < swsl::max_scans; ++count)
    bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(first), again.begin(), again.end());
  CHECK_EQ(error_of(bytes), "");
  bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(first), again.begin(), again.end());
  CHECK(error_of(bytes).starts_with(
      "test.img: a JPEG of more than 100 scans, each of which goes through the whole image"));
}

#endif
