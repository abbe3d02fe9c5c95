// JPEG through libjpeg-turbo, with Pillow's settings and Pillow's idea of what is truncated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "swsl/image.h"

namespace swsl::detail {

class JpegDecoder {
 public:
  JpegDecoder();
  ~JpegDecoder();

  // Reads the header. `bytes` and `name` must outlive the decoding.
  void open(const void* bytes, std::size_t size, const std::string& name, const DecodeOptions& options);
  int height() const;  // as stored, after DCT scaling
  int width() const;
  int orientation() const;

  // Writes the pixels of `needed` into the whole image that begins at `pixels`; others may be written as well. Once per open.
  void decode(const Rect& needed, std::uint8_t* pixels, std::ptrdiff_t row_stride);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace swsl::detail
