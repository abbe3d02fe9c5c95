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

TEST(png_of_every_kind) {
  constexpr int height = 11, width = 13;
  const int channels[] = {1, 0, 3, 1, 2, 0, 4};
  for (const auto& [colour, depths] : {std::pair{0, std::vector{1, 2, 4, 8, 16}},
                                       {2, {8, 16}},
                                       {3, {1, 2, 4, 8}},
                                       {4, {8, 16}},
                                       {6, {8, 16}}})
    for (const int depth : depths)
      for (const bool interlaced : {false, true}) {
        const std::size_t row_size = (static_cast<std::size_t>(width) * channels[colour] * depth + 7) / 8;
        const Bytes rows = fixtures::picture(height, static_cast<int>(row_size), 1);
        // Two colours short of what the indices can name: those are black.
        std::vector<png_color> palette;
        for (int i = 0; colour == 3 && i < std::max(1, (1 << depth) - 2); ++i)
          palette.push_back(
              {static_cast<png_byte>(i * 7), static_cast<png_byte>(255 - i), static_cast<png_byte>(i)});

        Bytes expected;
        for (int y = 0; y < height; ++y)
          for (int x = 0; x < width; ++x)
            for (int c = 0; c < 3; ++c) {
              const auto sample = [&](int channel) {
                const int bit = (x * channels[colour] + channel) * depth;
                const std::uint8_t* byte = rows.data() + y * row_size + bit / 8;
                if (depth == 16) return byte[0] * 256 + byte[1];
                return byte[0] >> (8 - depth - bit % 8) & ((1 << depth) - 1);
              };
              int value = sample(colour == 2 || colour == 6 ? c : 0);
              if (colour == 3) {
                const png_color entry = value < static_cast<int>(palette.size())
                                            ? palette[static_cast<std::size_t>(value)]
                                            : png_color{};
                value = c == 0 ? entry.red : c == 1 ? entry.green : entry.blue;
              } else if (depth == 16) {
                value = colour == 0 ? std::min(value, 255) : value / 256;
              } else {
                value = value * 255 / ((1 << depth) - 1);
              }
              expected.push_back(static_cast<std::uint8_t>(value));
            }
        const swsl::Image image =
            decode(fixtures::png(rows, height, width, depth, colour, interlaced, palette));
        CHECK_EQ(image.height, height);
        CHECK_EQ(image.width, width);
        CHECK(image.pixels == expected);
      }
}

TEST(png_truncated_in_its_pixels_is_an_error) {
  for (const bool interlaced : {false, true}) {
    const Bytes bytes = fixtures::png(fixtures::picture(30, 90, 1), 30, 30, 8, 2, interlaced);
    // Behind the pixels come the 4 bytes of zlib's checksum, the chunk's checksum, and the end chunk of 12.
    const std::size_t pixels_end = bytes.size() - 20;
    for (std::size_t size = 8; size < pixels_end - 2; ++size)
      CHECK(error_of(Bytes(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size)))
                .starts_with("test.img: truncated PNG: its " + std::to_string(size) + " bytes end"));
    CHECK_EQ(error_of(Bytes(bytes.begin(), bytes.end() - 12)), "");
  }
}

TEST(png_with_any_wrong_byte_is_an_error) {
  const Bytes bytes = fixtures::png(fixtures::picture(9, 12, 1), 9, 4, 8, 2, false);
  for (std::size_t i = 8; i < bytes.size() - 12; ++i) {
    if (i >= 33 && i < 37)
      continue;  // a greater length of the pixels' chunk makes it a file cut off behind its pixels
    Bytes broken = bytes;
    broken[i] ^= 0x40;
    CHECK(error_of(broken).starts_with("test.img: "));
  }
}

TEST(absurd_dimensions_are_refused_before_anything_is_allocated) {
  Bytes png = fixtures::png(fixtures::picture(4, 12, 1), 4, 4, 8, 2, false);
  std::memcpy(png.data() + 16, "\x7F\xFF\xFF\xFF\x7F\xFF\xFF\xFF", 8);
  CHECK_THROWS(swsl::ImageError, "2147483647 × 2147483647 pixels", decode(png));
  Bytes jpeg = fixtures::jpeg(fixtures::picture(4, 4, 3), 4, 4, {});
  const Bytes frame = {0xFF, 0xC0, 0, 17};
  const auto at = std::search(jpeg.begin(), jpeg.end(), frame.begin(), frame.end());
  std::fill(at + 5, at + 9, std::uint8_t{0xFE});
  CHECK_THROWS(swsl::ImageError, "expected at least 1 and at most 89478485", decode(jpeg));
}

TEST(exif_orientation_turns_the_image_upright) {
  // The letter F, 3 × 2, as each orientation stores it (rows from the top; # is light).
  const char* const stored[9] = {"",        "##/#./#.", "##/.#/.#", ".#/.#/##", "#./#./##",
                                 "###/#..", "#../###",  "..#/###",  "###/..#"};
  const Bytes upright = {1, 1, 1, 0, 1, 0};
  for (int orientation = 1; orientation <= 8; ++orientation) {
    const std::string_view rows = stored[orientation];
    const int width = static_cast<int>(rows.find('/')), height = 6 / width;
    Bytes pixels, large;
    for (const char c : rows)
      if (c != '/') pixels.insert(pixels.end(), 3, c == '#' ? 255 : 0);
    const swsl::DecodeOptions asked{.exif_orientation = true};
    const Bytes png =
        fixtures::png(pixels, height, width, 8, 2, false, {}, fixtures::exif_block(orientation));
    const swsl::Image image = decode(png, asked);
    CHECK_EQ(image.height, 3);
    CHECK_EQ(image.width, 2);
    for (std::size_t i = 0; i < 6; ++i) CHECK_EQ(int{image.pixels[3 * i]}, 255 * upright[i]);
    CHECK_EQ(decode(png).height, height);

    // In a JPEG, 16 pixels for one, so that each is a block of its own; and a part of it, for the rectangle
    // turns as well.
    for (int y = 0; y < 16 * height; ++y)
      for (int x = 0; x < 16 * width; ++x)
        for (int c = 0; c < 3; ++c)
          large.push_back(pixels[static_cast<std::size_t>((y / 16 * width + x / 16) * 3)]);
    const Bytes jpeg = fixtures::jpeg(large, 16 * height, 16 * width, {3, samplings[0]},
                                      fixtures::jpeg_exif_block(orientation));
    swsl::ImageDecoder decoder(asked);
    decoder.open(jpeg.data(), jpeg.size());
    CHECK_EQ(decoder.height(), 48);
    CHECK_EQ(decoder.width(), 32);
    for (std::size_t i = 0; i < 6; ++i) {
      const int y = static_cast<int>(i / 2) * 16 + 3, x = static_cast<int>(i % 2) * 16 + 5;
      const swsl::ImageView view = decoder.decode({y, x, 4, 7});
      CHECK(std::abs(view.data[y * view.row_stride + 3 * x] - 255 * upright[i]) < 8);
    }
    CHECK(same_region(decoder.decode(), decode(jpeg, asked), {0, 0, 48, 32}));
  }
}

// Mutations as in fuzz_image.cpp, which finds its own.
TEST(parts_of_damaged_images_are_those_of_the_whole) {
  std::vector<Bytes> seeds;
  for (const auto& sampling : samplings)
    for (const bool progressive : {false, true})
      seeds.push_back(fixtures::jpeg(fixtures::picture(70, 45, 3), 70, 45,
                                     {3, sampling, progressive, progressive ? 2 : 0}));
  seeds.push_back(fixtures::png(fixtures::picture(20, 90, 1), 20, 30, 8, 2, true));
  std::mt19937 random(5);
  int sound = 0;
  for (int i = 0; i < 2000; ++i) {
    Bytes bytes = seeds[random() % seeds.size()];
    for (auto wrong = random() % 4; wrong > 0; --wrong)
      bytes[random() % bytes.size()] = static_cast<std::uint8_t>(random());
    if (random() % 8 == 0) bytes.resize(random() % bytes.size());
    CHECK_EQ(fixtures::part_against_whole(bytes.data(), bytes.size()), "");
    sound += error_of(bytes).empty();
  }
  CHECK(sound > 500);
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

TEST(max_pixels) {
  const Bytes bytes[] = {fixtures::jpeg(fixtures::picture(20, 30, 3), 20, 30, {}),
                         fixtures::png(fixtures::picture(20, 90, 1), 20, 30, 8, 2, false)};
  for (const Bytes& image : bytes) {
    CHECK_EQ(decode(image, {.max_pixels = 600}).width, 30);
    CHECK_THROWS(swsl::ImageError,
                 "test.img: 20 × 30 pixels (height × width); expected at least 1 and at most 599; raise "
                 "max_pixels if you trust it",
                 decode(image, {.max_pixels = 599}));
  }
  CHECK_THROWS(std::invalid_argument, "max_pixels: expected 1 or more, got 0",
               swsl::ImageDecoder({.max_pixels = 0}));
}

TEST(files) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::temp_directory_path() / "swsl_test_image";
  fs::create_directories(folder);
  const auto write = [&](const char* name, const Bytes& bytes) {
    std::ofstream(folder / name, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return (folder / name).string();
  };
  const Bytes bytes = fixtures::jpeg(fixtures::picture(200, 300, 3), 200, 300, {.quality = 100});
  CHECK(swsl::read_image(write("good.jpg", bytes)).pixels == decode(bytes).pixels);

  const std::string missing = (folder / "missing.jpg").string(), directory = folder.string(),
                    empty = write("empty.jpg", {});
  CHECK_THROWS(swsl::ImageError, missing + ": cannot be opened: ", swsl::read_image(missing));
  CHECK_THROWS(swsl::ImageError, directory + ": is a directory", swsl::read_image(directory));
  CHECK_THROWS(swsl::ImageError, empty + ": is empty", swsl::read_image(empty));
  CHECK_THROWS(swsl::ImageError, "its name goes on after a zero byte",
               swsl::read_image((folder / "good.jpg").string() + '\0'));
  const std::string locked = write("locked.jpg", bytes);
  fs::permissions(locked, fs::perms::none);
  if (!std::ifstream(locked).is_open())  // root reads everything
    CHECK_THROWS(swsl::ImageError, locked + ": cannot be opened: ", swsl::read_image(locked));
  fs::remove_all(folder);
}

// A pipe that nobody writes to would be waited for: the alarm ends the test then.
TEST(pipes_sockets_and_devices_are_refused_unopened) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::temp_directory_path() / "swsl_test_image_special";
  fs::remove_all(folder);
  fs::create_directories(folder);
  const std::string pipe = (folder / "pipe.jpg").string(), socket = (folder / "socket.jpg").string();
  CHECK_EQ(mkfifo(pipe.c_str(), 0666), 0);
  const int listener = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  socket.copy(address.sun_path, sizeof address.sun_path - 1);
  CHECK_EQ(bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  alarm(60);
  CHECK_THROWS(swsl::ImageError, pipe + ": is a pipe; expected an image file", swsl::read_image(pipe));
  CHECK_THROWS(swsl::ImageError, socket + ": is a socket; expected an image file", swsl::read_image(socket));
  CHECK_THROWS(swsl::ImageError, "/dev/null: is a device; expected an image file",
               swsl::read_image("/dev/null"));
  alarm(0);
  close(listener);
  fs::remove_all(folder);
}

TEST(other_formats_are_named) {
  for (const auto& [magic, name] :
       {std::pair{std::string("GIF89a"), "is a GIF image; swsl decodes JPEG and PNG"},
        {"RIFF\1\2\3\4WEBPVP8 ", "is a WebP image"},
        {std::string("II*\0", 4), "is a TIFF image"},
        {"BM", "is a BMP image"},
        {"hello", "begins with the bytes 68 65 6C 6C; expected a JPEG"}})
    CHECK_THROWS(swsl::UnsupportedFormat, std::string("test.img: ") + name,
                 decode(Bytes(magic.begin(), magic.end())));
}

TEST(decoder_says_what_it_was_given) {
  swsl::ImageDecoder decoder;
  CHECK_THROWS(std::logic_error, "no image is open", decoder.height());
  CHECK_THROWS(std::logic_error, "no image is open", decoder.decode());
  const Bytes bytes = fixtures::jpeg(fixtures::picture(20, 30, 3), 20, 30, {});
  decoder.open(bytes.data(), bytes.size(), "a.jpg");
  for (const swsl::Rect& outside : {swsl::Rect{-1, 0, 5, 5}, {0, 26, 5, 5}, {16, 0, 5, 5}, {0, 0, 0, 5}})
    CHECK_THROWS(std::invalid_argument, "expected a rectangle inside a.jpg (20 × 30)",
                 decoder.decode(outside));
  CHECK_THROWS(swsl::ImageError, "b.jpg: truncated JPEG", decoder.open(bytes.data(), 30, "b.jpg"));
  CHECK_THROWS(std::logic_error, "no image is open", decoder.decode());
  swsl::ImageDecoder moved = std::move(decoder);
  moved.open(bytes.data(), bytes.size());
  CHECK(same_region(moved.decode(), decode(bytes), {0, 0, 20, 30}));
}

#else

TEST(a_missing_library_is_named) {
  if (!swsl::decodes_jpeg())
    CHECK_THROWS(swsl::UnsupportedFormat, "libjpeg62-turbo-dev", swsl::decode_image("\xFF\xD8\xFF\xE0", 4));
  if (!swsl::decodes_png())
    CHECK_THROWS(swsl::UnsupportedFormat, "libpng-dev", swsl::decode_image("\x89PNG\r\n\x1A\n", 8));
}

#endif
