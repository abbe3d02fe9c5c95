#include <array>
#include <bit>
#include <cstring>

#include "model/archive.h"

namespace swsl {
namespace {

constexpr std::size_t slices = 16;

// tables[0] is the remainder of a byte; tables[k] of a byte that k zeros follow. So 16 bytes are looked up at
// once, each as far from the end as it is (Kounavis and Berry's "slicing").
constexpr auto tables = [] {
  std::array<std::array<std::uint32_t, 256>, slices> out{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t remainder = byte;
    for (int bit = 0; bit < 8; ++bit) remainder = remainder >> 1 ^ (remainder & 1 ? 0xedb88320u : 0);
    out[0][byte] = remainder;
  }
  for (std::size_t k = 1; k < slices; ++k)
    for (std::uint32_t byte = 0; byte < 256; ++byte)
      out[k][byte] = out[k - 1][byte] >> 8 ^ out[0][out[k - 1][byte] & 0xff];
  return out;
}();

}  // namespace

std::uint32_t crc32(std::span<const std::byte> bytes) {
  static_assert(std::endian::native == std::endian::little);
  std::uint32_t remainder = 0xffffffffu;
  const std::byte* at = bytes.data();
  std::size_t left = bytes.size();
  for (; left >= slices; at += slices, left -= slices) {
    std::uint32_t words[slices / 4];
    std::memcpy(words, at, slices);
    words[0] ^= remainder;
    remainder = 0;
#pragma GCC unroll 16
    for (std::size_t i = 0; i < slices; ++i)
      remainder ^= tables[slices - 1 - i][words[i / 4] >> 8 * (i % 4) & 0xff];
  }
  for (; left > 0; ++at, --left)
    remainder = remainder >> 8 ^ tables[0][(remainder ^ std::to_integer<std::uint32_t>(*at)) & 0xff];
  return ~remainder;
}

}  // namespace swsl
