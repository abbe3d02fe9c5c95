// The size check that every format makes before it allocates anything.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include <swsl/image.h>

namespace swsl::detail {

inline void check_dimensions(const std::string& name, std::uint64_t height, std::uint64_t width,
                             const DecodeOptions& options) {
  constexpr std::uint64_t longest = std::numeric_limits<int>::max();
  const auto most = static_cast<std::uint64_t>(options.max_pixels);
  const bool empty = height == 0 || width == 0;
  // Sides first: the product of two absurd ones may not fit.
  if (empty || height > longest || width > longest || height * width > most)
    throw ImageError(name + ": " + std::to_string(height) + " × " + std::to_string(width) +
                     " pixels (height × width); expected at least 1 and at most " + std::to_string(most) +
                     (empty ? "" : "; raise max_pixels if you trust it"));
}

}  // namespace swsl::detail
