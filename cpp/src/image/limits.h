// The size check that every format makes before it allocates anything.
#pragma once

#include <cstdint>
#include <string>

#include "swsl/image.h"

namespace swsl::detail {

inline void check_dimensions(const std::string& name, std::uint64_t height, std::uint64_t width) {
  // Sides first: the product of two absurd ones may not fit.
  constexpr std::uint64_t most = max_image_pixels;
  if (height == 0 || width == 0 || height > most || width > most || height * width > most)
    throw ImageError(name + ": " + std::to_string(height) + " × " + std::to_string(width) +
                     " pixels (height × width); expected at least 1 and at most " + std::to_string(most));
}

}  // namespace swsl::detail
