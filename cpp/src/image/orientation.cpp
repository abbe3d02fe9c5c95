#include "image/orientation.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace swsl::detail {
namespace {

constexpr std::string_view exif_prefix{"Exif\0\0", 6};
constexpr unsigned orientation_tag = 0x0112;

// Bounds-checked reading of integers in the byte order of a TIFF block.
struct TiffBlock {
  std::string_view bytes;
  bool big_endian;

  bool holds(std::uint64_t offset, std::uint64_t size) const {
    return offset <= bytes.size() && size <= bytes.size() - offset;
  }
  std::uint32_t read(std::size_t offset, int size) const {
    std::uint32_t value = 0;
    for (int i = 0; i < size; ++i) {
      const auto byte = static_cast<unsigned char>(bytes[offset + (big_endian ? i : size - 1 - i)]);
      value = value << 8 | byte;
    }
    return value;
  }
};

// Bytes per value of the TIFF types 1 to 13 and 16; 0: no such type.
int type_size(unsigned type) {
  constexpr int sizes[17] = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8};
  return type < 17 ? sizes[type] : 0;
}

std::optional<int> integer_value(const TiffBlock& block, std::size_t offset, unsigned type) {
  switch (type) {
    case 3:  // SHORT
      return static_cast<int>(block.read(offset, 2));
    case 4:   // LONG
    case 13:  // IFD
      return static_cast<int>(std::min<std::uint32_t>(block.read(offset, 4), 0xFFFF));
    case 6:  // signed BYTE
      return static_cast<std::int8_t>(block.read(offset, 1));
    case 8:  // signed SHORT
      return static_cast<std::int16_t>(block.read(offset, 2));
    case 9:  // signed LONG
      return static_cast<std::int32_t>(block.read(offset, 4));
    default: return std::nullopt;
  }
}

// Every orientation is at most three steps: swap rows with columns, then mirror either.
struct Turn {
  bool swap, mirror_rows, mirror_columns;
};

Turn turn_of(int orientation) {
  switch (orientation) {
    case 2: return {false, false, true};
    case 3: return {false, true, true};
    case 4: return {false, true, false};
    case 5: return {true, false, false};
    case 6: return {true, true, false};
    case 7: return {true, true, true};
    case 8: return {true, false, true};
    default: return {false, false, false};
  }
}

}  // namespace

std::optional<int> exif_orientation(std::string_view bytes) {
  for (int i = 0; i < 2 && bytes.substr(0, exif_prefix.size()) == exif_prefix; ++i)
    bytes.remove_prefix(exif_prefix.size());
  if (bytes.empty()) return std::nullopt;

  const std::string_view magic = bytes.substr(0, 4);
  const bool big_endian = magic.substr(0, 2) == "MM";
  const bool known =
      (big_endian || magic.substr(0, 2) == "II") && magic.size() == 4 &&
      (magic.substr(2) == std::string_view("\0*", 2) || magic.substr(2) == std::string_view("*\0", 2));
  const TiffBlock block{bytes, big_endian};
  if (!known || !block.holds(0, 8)) return std::nullopt;

  std::uint64_t entry = block.read(4, 4);
  if (!block.holds(entry, 2)) return std::nullopt;
  const std::uint32_t count = block.read(entry, 2);
  entry += 2;
  std::uint64_t claimed = 0;
  for (std::uint32_t i = 0; i < count && block.holds(entry, 12); ++i, entry += 12) {
    const std::uint32_t type = block.read(entry + 2, 2), values = block.read(entry + 4, 4);
    const std::uint64_t size = std::uint64_t{values} * type_size(type);
    std::uint64_t value = entry + 8;
    if (size > 4) {
      value = block.read(entry + 8, 4);
      // Pillow's rules: tags that together claim more bytes than the block has are passed over, one that
      // reaches beyond its end closes the directory.
      claimed += size;
      if (claimed > bytes.size()) continue;
      if (!block.holds(value, size)) break;
    }
    if (block.read(entry, 2) == orientation_tag && size > 0) return integer_value(block, value, type);
  }
  return std::nullopt;
}

std::optional<int> xmp_orientation(std::string_view packet) {
  constexpr std::string_view key = "tiff:Orientation";
  for (std::size_t at = packet.find(key); at != packet.npos; at = packet.find(key, at + 1)) {
    std::string_view rest = packet.substr(at + key.size());
    if (rest.substr(0, 2) == "=\"")
      rest.remove_prefix(2);
    else if (rest.substr(0, 1) == ">")
      rest.remove_prefix(1);
    else
      continue;
    if (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') return rest[0] - '0';
  }
  return std::nullopt;
}

Rect stored_rectangle(const Rect& upright, int orientation, int height, int width) {
  const Turn turn = turn_of(orientation);
  Rect stored = turn.swap ? Rect{upright.left, upright.top, upright.width, upright.height} : upright;
  if (turn.mirror_rows) stored.top = height - stored.top - stored.height;
  if (turn.mirror_columns) stored.left = width - stored.left - stored.width;
  return stored;
}

void turn_upright(const ImageView& stored, int orientation, const Rect& upright, std::uint8_t* output,
                  std::ptrdiff_t output_stride) {
  const Turn turn = turn_of(orientation);
  std::ptrdiff_t row_step = stored.row_stride, column_step = 3;
  const std::uint8_t* origin = stored.data;
  if (turn.mirror_rows) {
    origin += (stored.height - 1) * row_step;
    row_step = -row_step;
  }
  if (turn.mirror_columns) {
    origin += std::ptrdiff_t{3} * (stored.width - 1);
    column_step = -column_step;
  }
  if (turn.swap) std::swap(row_step, column_step);

  // In tiles, because one of the two sides is walked down its columns.
  constexpr int tile = 32;
  const int bottom = upright.top + upright.height, right = upright.left + upright.width;
  for (int tile_top = upright.top; tile_top < bottom; tile_top += tile)
    for (int tile_left = upright.left; tile_left < right; tile_left += tile)
      for (int y = tile_top; y < std::min(tile_top + tile, bottom); ++y) {
        std::uint8_t* to = output + y * output_stride + std::ptrdiff_t{3} * tile_left;
        for (int x = tile_left; x < std::min(tile_left + tile, right); ++x, to += 3)
          std::memcpy(to, origin + y * row_step + x * column_step, 3);
      }
}

}  // namespace swsl::detail
