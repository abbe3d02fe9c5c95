// Which JPEGs a GPU may decode in libjpeg's place.
#include "image/plain_jpeg.h"

#include <algorithm>
#include <random>

#include "check.h"

#if SWSL_WITH_JPEG && SWSL_WITH_PNG

#include "image_fixtures.h"

using fixtures::Bytes;
using fixtures::decode, fixtures::error_of, fixtures::same_region, fixtures::samplings;
using fixtures::JpegKind;

TEST(plain_jpegs_are_what_gpus_decode_too) {
  const Bytes pixels = fixtures::picture(40, 50, 3);
  const auto make = [&](const JpegKind& kind, const Bytes& exif = {}) {
    return fixtures::jpeg(pixels, 40, 50, kind, exif);
  };
  const auto plain = [](const Bytes& bytes, const swsl::DecodeOptions& options = {}) {
    swsl::ImageDecoder decoder(options);
    decoder.open(bytes.data(), bytes.size(), "test.img");
    const auto found = swsl::plain_jpeg(decoder);
    CHECK(found.empty() || found.data() == bytes.data());
    CHECK(same_region(decoder.decode(), decode(bytes, options), {0, 0, decoder.height(), decoder.width()}));
    return found.size();
  };
  for (std::size_t i = 0; i < samplings.size(); ++i) {  // the first four are 4:4:4, 4:2:2, 4:2:0 and 4:4:0
    const Bytes bytes = make({3, samplings[i]}),
                restarts = make({.sampling = samplings[i], .restart_interval = 2});
    CHECK_EQ(plain(bytes), i < 4 ? bytes.size() : 0);
    CHECK_EQ(plain(restarts), i < 4 ? restarts.size() : 0);
  }
  CHECK_EQ(plain(make({.progressive = true})), std::size_t{0});
  CHECK_EQ(plain(make({.transform = false})), std::size_t{0});
  CHECK_EQ(plain(fixtures::jpeg(pixels, 40, 50, {1, {{1, 1}}})), std::size_t{0});
  CHECK_EQ(plain(fixtures::jpeg(fixtures::picture(40, 50, 4), 40, 50, {4, {{1, 1}, {1, 1}, {1, 1}, {1, 1}}})),
           std::size_t{0});
  CHECK_EQ(plain(fixtures::png(pixels, 40, 50, 8, 2, false)), std::size_t{0});

  const Bytes turned = make({}, fixtures::jpeg_exif_block(6));
  CHECK_EQ(plain(turned), turned.size());
  CHECK_EQ(plain(turned, {.exif_orientation = true}), std::size_t{0});
  CHECK_EQ(plain(make({}), {.dct_scaling = 5}), std::size_t{0});

  Bytes bytes = make({});
  const std::size_t size = bytes.size();
  bytes.insert(bytes.end(), 1000, 0xFF);  // phones append films
  CHECK_EQ(plain(bytes), size);
  swsl::ImageDecoder decoder;
  for (const std::size_t cut : {size - 1, size - 2, size - 3, size / 2}) {
    decoder.open(bytes.data(), cut);
    CHECK(swsl::plain_jpeg(decoder).empty());
  }

  // What is found when decoding begins: a Huffman table of which more codes are claimed than there are.
  bytes = make({});
  const Bytes tables = {0xFF, 0xC4};
  const auto at = std::search(bytes.begin(), bytes.end(), tables.begin(), tables.end());
  std::swap(at[5], *std::max_element(at + 5, at + 21));
  const std::string error = error_of(bytes);
  CHECK(error.starts_with("test.img: broken JPEG: "));
  decoder.open(bytes.data(), bytes.size(), "test.img");
  CHECK_THROWS(swsl::ImageError, error, swsl::plain_jpeg(decoder));
}

// A GPU may refuse them when nobody can be told any more.
TEST(plain_jpegs_decode_whatever_is_in_them) {
  std::mt19937 random(11);
  swsl::ImageDecoder decoder;
  int plain = 0;
  for (const int restart_interval : {0, 2}) {
    const Bytes sound =
        fixtures::jpeg(fixtures::picture(40, 50, 3), 40, 50, {3, samplings[2], false, restart_interval});
    for (int i = 0; i < 3000; ++i) {
      Bytes bytes = sound;
      for (auto wrong = 1 + random() % 5; wrong > 0; --wrong)
        bytes[random() % bytes.size()] = static_cast<std::uint8_t>(random());
      try {
        decoder.open(bytes.data(), bytes.size());
        if (swsl::plain_jpeg(decoder).empty()) continue;
      } catch (const swsl::ImageError&) {
        continue;
      }
      ++plain;
      decoder.decode();
    }
  }
  CHECK(plain > 1000);
}

#endif
