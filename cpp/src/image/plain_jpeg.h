// JPEGs that a GPU may decode in libjpeg's place.
#pragma once

#include <cstdint>
#include <span>

#include <swsl/image.h>

namespace swsl {

// The bytes of the image that is open, if it is a JPEG of the kind that every decoder knows
// (JpegDecoder::plain_size), needs no turning, and is complete: libjpeg would decode it, though perhaps with
// warnings. Else none, and it is for `decode`. They are there until the decoder opens another. Throws
// ImageError where `decode` would.
std::span<const std::uint8_t> plain_jpeg(ImageDecoder& decoder);

}  // namespace swsl
