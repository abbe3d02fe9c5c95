// PNG through libpng, to the pixels of Pillow's convert("RGB").
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include <swsl/image.h>
#include "image/buffer.h"

namespace swsl::detail {

struct PngResult {
  int height;
  int width;
  int orientation;  // 1 unless asked for by the options
};

// Decodes everything into `pixels` (height × width × 3). libpng hands over rows as they come, so truncation
// is judged as Pillow does: an image whose last pixel was there is complete. image.h says where it is
// stricter.
PngResult decode_png(const void* bytes, std::size_t size, const std::string& name,
                     const DecodeOptions& options, Buffer& pixels);

}  // namespace swsl::detail
