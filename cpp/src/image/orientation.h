// EXIF orientation: where it is written, and what it does to pixels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include <swsl/image.h>

namespace swsl::detail {

// The Orientation tag of an EXIF block (a TIFF directory, with or without "Exif\0\0" before it), as Pillow
// reads it: none if the tag is missing or no number, or if the block is no TIFF directory.
std::optional<int> exif_orientation(std::string_view block);

// The tiff:Orientation of an XMP packet, which counts where EXIF says nothing.
std::optional<int> xmp_orientation(std::string_view packet);

constexpr bool swaps_sides(int orientation) { return orientation >= 5 && orientation <= 8; }

// The stored rectangle that `upright` (a rectangle of the upright image) comes from, in a stored image of
// height × width.
Rect stored_rectangle(const Rect& upright, int orientation, int height, int width);

// Writes the pixels of `upright` into `output`, the first pixel of the whole upright image; `stored` is the
// whole stored image.
void turn_upright(const ImageView& stored, int orientation, const Rect& upright, std::uint8_t* output,
                  std::ptrdiff_t output_stride);

}  // namespace swsl::detail
