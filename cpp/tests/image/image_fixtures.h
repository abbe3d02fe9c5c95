// JPEG and PNG files in memory, written by the same libraries that read them.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <jpeglib.h>
#include <png.h>

#include <swsl/image.h>

namespace fixtures {

using Bytes = std::vector<std::uint8_t>;

// Smooth in the main, so that compression has something to do, with noise that shows every misplaced pixel.
inline Bytes picture(int height, int width, int channels, unsigned seed = 1) {
  std::mt19937 random(seed);
  Bytes pixels;
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      for (int c = 0; c < channels; ++c)
        pixels.push_back(static_cast<std::uint8_t>((x * (3 + c) + y * (5 - c)) % 193 + random() % 63));
  return pixels;
}

struct JpegKind {
  int channels = 3;  // 4: CMYK, stored as YCCK if `transform`
  std::vector<std::pair<int, int>> sampling = {{1, 1}, {1, 1}, {1, 1}};  // horizontal, vertical
  bool progressive = false;
  int restart_interval = 0;
  bool transform = true;
  int quality = 90;
};

inline Bytes jpeg(const Bytes& pixels, int height, int width, const JpegKind& kind, const Bytes& exif = {}) {
  jpeg_compress_struct info;
  jpeg_error_mgr errors;  // a faulty fixture ends the program with libjpeg's message
  info.err = jpeg_std_error(&errors);
  jpeg_create_compress(&info);
  unsigned char* output = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&info, &output, &size);
  info.image_height = static_cast<JDIMENSION>(height);
  info.image_width = static_cast<JDIMENSION>(width);
  info.input_components = kind.channels;
  info.in_color_space = kind.channels == 1 ? JCS_GRAYSCALE : kind.channels == 3 ? JCS_RGB : JCS_CMYK;
  jpeg_set_defaults(&info);
  if (kind.channels == 4) jpeg_set_colorspace(&info, kind.transform ? JCS_YCCK : JCS_CMYK);
  if (kind.channels == 3 && !kind.transform) jpeg_set_colorspace(&info, JCS_RGB);
  jpeg_set_quality(&info, kind.quality, TRUE);
  for (std::size_t c = 0; c < kind.sampling.size(); ++c) {
    info.comp_info[c].h_samp_factor = kind.sampling[c].first;
    info.comp_info[c].v_samp_factor = kind.sampling[c].second;
  }
  if (kind.progressive) jpeg_simple_progression(&info);
  info.restart_interval = static_cast<unsigned>(kind.restart_interval);
  jpeg_start_compress(&info, TRUE);
  if (!exif.empty()) jpeg_write_marker(&info, JPEG_APP0 + 1, exif.data(), static_cast<unsigned>(exif.size()));
  for (int y = 0; y < height; ++y) {
    auto* row = const_cast<JSAMPLE*>(pixels.data()) + static_cast<std::size_t>(y) * width * kind.channels;
    jpeg_write_scanlines(&info, &row, 1);
  }
  jpeg_finish_compress(&info);
  const Bytes bytes(output, output + size);
  std::free(output);
  jpeg_destroy_compress(&info);
  return bytes;
}

// libjpeg as its manual has it: the plain twin of swsl's decoder. RGB, or CMYK as stored.
inline Bytes plain_jpeg_decode(const Bytes& bytes) {
  jpeg_decompress_struct info;
  jpeg_error_mgr errors;
  info.err = jpeg_std_error(&errors);
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, bytes.data(), bytes.size());
  jpeg_read_header(&info, TRUE);
  info.out_color_space = info.num_components == 4 ? JCS_CMYK : JCS_RGB;
  jpeg_start_decompress(&info);
  const std::size_t row_size = static_cast<std::size_t>(info.output_width) * info.output_components;
  Bytes pixels(row_size * info.output_height);
  while (info.output_scanline < info.output_height) {
    JSAMPROW row = pixels.data() + row_size * info.output_scanline;
    jpeg_read_scanlines(&info, &row, 1);
  }
  jpeg_finish_decompress(&info);
  jpeg_destroy_decompress(&info);
  return pixels;
}

// `rows`: as PNG stores them, unfiltered. `exif`: of an eXIf chunk.
inline Bytes png(const Bytes& rows, int height, int width, int depth, int colour, bool interlaced,
                 const std::vector<png_color>& palette = {}, Bytes exif = {}) {
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(png);
  if (setjmp(png_jmpbuf(png))) std::abort();
  Bytes output;
  png_set_write_fn(
      png, &output,
      [](png_structp self, png_bytep data, std::size_t size) {
        auto& bytes = *static_cast<Bytes*>(png_get_io_ptr(self));
        bytes.insert(bytes.end(), data, data + size);
      },
      [](png_structp) {});
  png_set_IHDR(png, info, static_cast<png_uint_32>(width), static_cast<png_uint_32>(height), depth, colour,
               interlaced ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT,
               PNG_FILTER_TYPE_DEFAULT);
  png_set_check_for_invalid_index(png, 0);  // indices beyond the palette are wanted
  if (!palette.empty()) png_set_PLTE(png, info, palette.data(), static_cast<int>(palette.size()));
  if (!exif.empty()) png_set_eXIf_1(png, info, static_cast<png_uint_32>(exif.size()), exif.data());
  png_write_info(png, info);
  const std::size_t row_size = rows.size() / static_cast<std::size_t>(height);
  std::vector<png_bytep> pointers;
  for (int y = 0; y < height; ++y) pointers.push_back(const_cast<png_bytep>(rows.data()) + y * row_size);
  png_write_image(png, pointers.data());
  png_write_end(png, nullptr);
  png_destroy_write_struct(&png, &info);
  return output;
}

// A big-endian TIFF directory with nothing but an Orientation tag.
inline Bytes exif_block(int orientation) {
  return {'M',  'M',  0, 42, 0, 0, 0, 8, 0, 1,
          0x01, 0x12, 0, 3,  0, 0, 0, 1, 0, static_cast<std::uint8_t>(orientation),
          0,    0,    0, 0,  0, 0};
}

inline Bytes jpeg_exif_block(int orientation) {
  Bytes block = {'E', 'x', 'i', 'f', 0, 0};
  const Bytes directory = exif_block(orientation);
  block.insert(block.end(), directory.begin(), directory.end());
  return block;
}

inline swsl::Image decode(const Bytes& bytes, const swsl::DecodeOptions& options = {}) {
  return swsl::decode_image(bytes.data(), bytes.size(), options, "test.img");
}

// Every way in which colours can be stored smaller than brightness that a camera or editor writes, and some
// that none does.
inline const std::vector<std::vector<std::pair<int, int>>> samplings = {
    {{1, 1}, {1, 1}, {1, 1}}, {{2, 1}, {1, 1}, {1, 1}}, {{2, 2}, {1, 1}, {1, 1}}, {{1, 2}, {1, 1}, {1, 1}},
    {{4, 1}, {1, 1}, {1, 1}}, {{4, 2}, {1, 1}, {1, 1}}, {{2, 2}, {2, 1}, {1, 2}}, {{2, 4}, {1, 1}, {1, 1}},
};

inline bool same_region(const swsl::ImageView& region, const swsl::Image& whole, const swsl::Rect& needed) {
  if (region.height != whole.height || region.width != whole.width) return false;
  for (int y = needed.top; y < needed.top + needed.height; ++y)
    if (std::memcmp(region.data + y * region.row_stride + 3 * needed.left,
                    whole.pixels.data() + (static_cast<std::size_t>(y) * whole.width + needed.left) * 3,
                    static_cast<std::size_t>(needed.width) * 3) != 0)
      return false;
  return true;
}

inline std::string error_of(const Bytes& bytes, const swsl::Rect* needed = nullptr) {
  swsl::ImageDecoder decoder;
  try {
    decoder.open(bytes.data(), bytes.size(), "test.img");
    needed != nullptr ? decoder.decode(*needed) : decoder.decode();
    return "";
  } catch (const swsl::ImageError& error) {
    return error.what();
  }
}

// What of a file, of whatever bytes, is wrong with decoding a part against decoding the whole: "" if nothing
// is. The part, and whether there is DCT scaling, come from the bytes, so that these alone are the case.
inline std::string part_against_whole(const std::uint8_t* bytes, std::size_t size) {
  std::uint32_t hash = 2166136261u;
  for (std::size_t i = 0; i < size; ++i) hash = (hash ^ bytes[i]) * 16777619u;
  std::mt19937 random(hash);
  swsl::DecodeOptions options{.exif_orientation = random() % 4 == 0, .max_pixels = 300'000};
  if (random() % 4 == 0) options.dct_scaling = 8;
  swsl::Image whole;
  std::string error;
  try {
    whole = swsl::decode_image(bytes, size, options);
  } catch (const swsl::ImageError& refused) {
    error = refused.what();
  }
  swsl::ImageDecoder decoder(options);
  try {
    decoder.open(bytes, size);
    const int height = decoder.height(), width = decoder.width();
    const auto below = [&](int limit) { return static_cast<int>(random() % static_cast<unsigned>(limit)); };
    swsl::Rect needed{0, 0, 1 + below(height), 1 + below(width)};
    needed.top = below(height - needed.height + 1);
    needed.left = below(width - needed.width + 1);
    const swsl::ImageView part = decoder.decode(needed);
    if (!error.empty()) return "the part is there, and the whole is not: " + error;
    return same_region(part, whole, needed) ? "" : "the part has other pixels than the whole";
  } catch (const swsl::ImageError& refused) {
    return error.empty() ? std::string("the whole is there, and the part is not: ") + refused.what() : "";
  }
}

}  // namespace fixtures
