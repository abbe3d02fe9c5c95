// JPEG through libjpeg-turbo, with Pillow's settings and Pillow's idea of what is truncated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include <swsl/image.h>

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

  // What a GPU decodes too: baseline, one scan, 8 bits, YCbCr with colours stored whole or halved. If the
  // opened JPEG is that kind, and sound as far as `decode` would find out before and after its entropy-coded
  // data: how many bytes it has, to the end of its end marker. Else 0. Throws what `decode` would, and in
  // between the two a fresh `open` is needed, unless the answer was 0.
  std::size_t plain_size();

  // Writes the pixels of `needed` into the whole image that begins at `pixels`; others may be written as
  // well. Once per open.
  void decode(const Rect& needed, std::uint8_t* pixels, std::ptrdiff_t row_stride);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace swsl::detail
