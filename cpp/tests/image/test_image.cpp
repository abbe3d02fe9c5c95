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

}  // namespace

TEST(png_of_every_kind) {
  constexpr int height = 11, width = 13;
  const int channels[] = {1, 0, 3, 1, 2, 0, 4};
  for (const auto& kind : {std::pair{0, std::vector{1, 2, 4, 8, 16}},
                           {2, {8, 16}},
                           {3, {1, 2, 4, 8}},
                           {4, {8, 16}},
                           {6, {8, 16}}})
    for (const int depth : kind.second)
      for (const bool interlaced : {false, true}) {
        const int colour = kind.first;  // Clang 14's lambdas take no part of a pair
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
