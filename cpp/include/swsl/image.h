// Image files to 8-bit RGB pixels: the same pixels as `PIL.Image.open(file).convert("RGB")`, bit for bit.
//
//   swsl::Image image = swsl::read_image("dog.jpg", {.exif_orientation = true});
//   preprocessor(image.view(), output);
//
// Many images, without an allocation per image and without decoding what is not needed:
//
//   swsl::ImageDecoder decoder;
//   for (const auto& path : paths) {
//     decoder.open_file(path);
//     const swsl::Rect needed = preprocessor.source_rectangle(decoder.height(), decoder.width());
//     preprocessor(decoder.decode(needed), output);
//   }
//
// Formats: JPEG and PNG. Anything else, or a format whose library was missing when swsl was built, is
// `UnsupportedFormat`. As in Pillow, JPEG data that libjpeg can repair with a warning are accepted, truncated
// data are not. A progressive JPEG that lacks scans is smoothed by libjpeg, and not as Pillow's does it where
// swsl was built with a libjpeg-turbo before 3: there it is `UnsupportedFormat` too. PNGs are judged by
// libpng, stricter than Pillow where their structure or a checksum is wrong; tests/deploy/test_fuzz_images.py
// has the list of all such differences, and finds no other.
//
// Errors: `ImageError` (its message opens with the name of the image) for whatever is wrong with a file or
// its bytes; std::invalid_argument for a faulty argument.
//
// Thread safety: the functions may be called from any number of threads. An `ImageDecoder` serves one thread
// at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <swsl/api.h>

namespace swsl {

// The file cannot be read, or its bytes are no complete image.
class SWSL_API ImageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The bytes may be a sound image, but in a format that this build does not decode: Pillow may.
class SWSL_API UnsupportedFormat : public ImageError {
 public:
  using ImageError::ImageError;
};

// Pixels that belong to somebody else: RGB, 3 bytes each, the row below starting `row_stride` bytes further
// on.
struct ImageView {
  const std::uint8_t* data = nullptr;
  int height = 0;
  int width = 0;
  std::ptrdiff_t row_stride = 0;
};

// Decoded pixels: height × width × 3, RGB, row-major, no padding.
struct Image {
  int height = 0;
  int width = 0;
  std::vector<std::uint8_t> pixels;

  ImageView view() const { return {pixels.data(), height, width, std::ptrdiff_t{3} * width}; }
};

// Rows [top, top + height) and columns [left, left + width).
struct Rect {
  int top = 0;
  int left = 0;
  int height = 0;
  int width = 0;
};

// Pillow's Image.MAX_IMAGE_PIXELS. Pillow warns above this and refuses above twice as much; here a warning
// would go unseen.
inline constexpr std::int64_t default_max_pixels = 89'478'485;

// A JPEG of more scans is an ImageError: each goes through the whole image, whatever little it holds.
// Encoders write about ten.
inline constexpr int max_scans = 100;

struct DecodeOptions {
  // Turn and mirror the pixels as the EXIF orientation says (`PIL.ImageOps.exif_transpose`).
  bool exif_orientation = false;

  // Inexact, JPEG only, 0 = off. The shorter side that the pixels will be resized to: the decoder then
  // shrinks by 2, 4 or 8 inside the inverse DCT, as long as the decoded shorter side stays at least twice
  // this long. The pixels are no longer those of a full decode followed by the resize.
  int dct_scaling = 0;

  // An image of more pixels is an ImageError, before anything is allocated: a small file can hold a great
  // many.
  std::int64_t max_pixels = default_max_pixels;
};

// What this build can decode (a library may have been missing).
SWSL_API bool decodes_jpeg() noexcept;
SWSL_API bool decodes_png() noexcept;

// `name` stands for the bytes in error messages.
SWSL_API Image decode_image(const void* bytes, std::size_t size, const DecodeOptions& options = {},
                            std::string_view name = "image bytes");
SWSL_API Image read_image(const std::string& path, const DecodeOptions& options = {});

// A decoder that keeps its buffers from one image to the next.
class SWSL_API ImageDecoder {
 public:
  explicit ImageDecoder(const DecodeOptions& options = {});
  ~ImageDecoder();
  ImageDecoder(ImageDecoder&&) noexcept;
  ImageDecoder& operator=(ImageDecoder&&) noexcept;

  // Reads the header. The bytes are not copied: they must stay until the last `decode` of this image has
  // returned.
  void open(const void* bytes, std::size_t size, std::string_view name = "image bytes");
  // `when_read`, if there is one, is called between reading the file, which waits for a disk, and looking
  // into its bytes, which keeps a core busy.
  void open_file(const std::string& path, const std::function<void()>& when_read = {});

  // Of the opened image, as `decode` will give it: after orientation and DCT scaling.
  int height() const;
  int width() const;

  // The whole image, until the next call of `open`, `open_file` or `decode`.
  ImageView decode();

  // A view of the whole image (height() × width()) in which only the pixels inside `needed` have been
  // written, and are those of a full decode; the others are unspecified bytes. Truncation is found wherever
  // it is, as in a full decode.
  ImageView decode(const Rect& needed);

 private:
  friend Image decode_image(const void*, std::size_t, const DecodeOptions&, std::string_view);
  friend Image read_image(const std::string&, const DecodeOptions&);
  friend std::span<const std::uint8_t> plain_jpeg(ImageDecoder&);
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace swsl
