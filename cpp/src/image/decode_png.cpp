#include "image/decode_png.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string_view>
#include <vector>

#include "image/limits.h"
#include "image/orientation.h"

#if SWSL_WITH_PNG

#include <png.h>

namespace swsl::detail {
namespace {

constexpr std::size_t signature_size = 8;

std::uint32_t read_u32(const std::uint8_t* at) {
  return std::uint32_t{at[0]} << 24 | std::uint32_t{at[1]} << 16 | std::uint32_t{at[2]} << 8 | at[3];
}

struct Header {
  int height, width, depth, colour;
  bool interlaced;

  int channels() const { return colour == 2 ? 3 : colour == 4 ? 2 : colour == 6 ? 4 : 1; }
};

// libpng reads the same fields again and judges them; here they are needed before anything is allocated.
Header read_header(const std::uint8_t* bytes, std::size_t size, const std::string& name,
                   const DecodeOptions& options) {
  if (size < signature_size + 8 + 13 + 4)
    throw ImageError(name + ": truncated PNG: its " + std::to_string(size) + " bytes end in its header");
  const std::uint8_t* header = bytes + signature_size;
  if (read_u32(header) != 13 || std::memcmp(header + 4, "IHDR", 4) != 0)
    throw ImageError(name + ": broken PNG: its first chunk is not an IHDR of 13 bytes");
  check_dimensions(name, read_u32(header + 12), read_u32(header + 8), options);
  return {static_cast<int>(read_u32(header + 12)), static_cast<int>(read_u32(header + 8)), header[16],
          header[17], header[20] != 0};
}

// What a longjmp may cross: plain data.
struct Reader {
  png_structp png = nullptr;
  png_infop info = nullptr;
  Header header{};
  std::uint8_t palette[256][3] = {};  // black where the file's palette ends, as in Pillow
  std::uint8_t* pixels = nullptr;
  std::uint8_t* pass_row = nullptr;  // interlaced: room for a row of a pass, as RGB
  char message[256] = {};

  ~Reader() { png_destroy_read_struct(&png, &info, nullptr); }
};

Reader& reader_of(png_structp png) { return *static_cast<Reader*>(png_get_progressive_ptr(png)); }

[[noreturn]] void leave(png_structp png, png_const_charp message) {
  Reader& reader = *static_cast<Reader*>(png_get_error_ptr(png));
  std::strncpy(reader.message, message, sizeof reader.message - 1);
  png_longjmp(png, 1);
}

void ignore_warning(png_structp, png_const_charp) {}

// One row of `width` pixels as stored, any depth and colour type, to RGB: what Pillow's modes and
// convert("RGB") make of it.
void convert_row(const Reader& reader, const std::uint8_t* row, int width, std::uint8_t* rgb) {
  const Header& header = reader.header;
  const int depth = header.depth, bytes = depth / 8;
  switch (header.colour) {
    case 2:
    case 6:
      if (header.colour == 2 && depth == 8) {
        std::memcpy(rgb, row, static_cast<std::size_t>(width) * 3);
        return;
      }
      // Of 16 bits the upper 8; alpha is dropped, not blended.
      for (int x = 0; x < width; ++x, rgb += 3, row += header.channels() * bytes)
        for (int c = 0; c < 3; ++c) rgb[c] = row[c * bytes];
      return;
    case 3:
      for (int x = 0; x < width; ++x, rgb += 3) {
        const int bit = x * depth;
        const int index = row[bit / 8] >> (8 - depth - bit % 8) & ((1 << depth) - 1);
        std::memcpy(rgb, reader.palette[index], 3);
      }
      return;
    default: {
      for (int x = 0; x < width; ++x, rgb += 3) {
        int grey;
        if (header.colour == 4)
          grey = row[x * 2 * bytes];
        else if (depth == 16)
          grey = row[2 * x] != 0 ? 255 : row[2 * x + 1];  // Pillow clips 16-bit grey instead of scaling it
        else {
          const int bit = x * depth, most = (1 << depth) - 1;
          grey = (row[bit / 8] >> (8 - depth - bit % 8) & most) * (255 / most);
        }
        rgb[0] = rgb[1] = rgb[2] = static_cast<std::uint8_t>(grey);
      }
    }
  }
}

void header_ready(png_structp png, png_infop info) {
  Reader& reader = reader_of(png);
  png_colorp colours;
  int count = 0;
  if (png_get_PLTE(png, info, &colours, &count) != 0)
    for (int i = 0; i < std::min(count, 256); ++i) {
      reader.palette[i][0] = colours[i].red;
      reader.palette[i][1] = colours[i].green;
      reader.palette[i][2] = colours[i].blue;
    }
  png_start_read_image(png);
}

// Without libpng's interlace handling, which wants the whole image as stored, a pass gives its own rows with
// its own pixels.
void row_ready(png_structp png, png_bytep row, png_uint_32 y, int pass) {
  Reader& reader = reader_of(png);
  const auto width = static_cast<std::size_t>(reader.header.width);
  if (!reader.header.interlaced) {
    convert_row(reader, row, reader.header.width, reader.pixels + y * width * 3);
    return;
  }
  convert_row(reader, row, static_cast<int>(PNG_PASS_COLS(reader.header.width, pass)), reader.pass_row);
  std::uint8_t* const line = reader.pixels + std::size_t{PNG_ROW_FROM_PASS_ROW(y, pass)} * width * 3;
  const std::uint8_t* from = reader.pass_row;
  for (std::size_t x = PNG_PASS_START_COL(pass); x < width;
       x += std::size_t{1} << PNG_PASS_COL_SHIFT(pass), from += 3)
    std::memcpy(line + 3 * x, from, 3);
}

void nothing_more(png_structp, png_infop) {}

bool push(Reader& reader, const std::uint8_t* bytes, std::size_t size, bool texts) {
  reader.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &reader, leave, ignore_warning);
  if (reader.png == nullptr) return false;
  if (setjmp(png_jmpbuf(reader.png))) return false;
  png_structp png = reader.png;
  reader.info = png_create_info_struct(png);
  if (reader.info == nullptr) png_error(png, "out of memory");
  png_set_user_limits(png, 0x7FFFFFFF, 0x7FFFFFFF);  // check_dimensions has judged
  png_set_crc_action(png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
  // No chunk that the pixels do not depend on is parsed.
  png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
  if (texts) {
    static constexpr png_byte names[] = "tEXt\0zTXt\0iTXt";
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_AS_DEFAULT, names, 3);
  }
  png_set_progressive_read_fn(png, &reader, header_ready, row_ready, nothing_more);
  png_process_data(png, reader.info, const_cast<png_bytep>(bytes), size);
  return true;
}

bool has_all_rows(const Reader& reader) {
  if (reader.header.interlaced) return png_get_current_pass_number(reader.png) >= 7;
  return png_get_current_row_number(reader.png) >= static_cast<png_uint_32>(reader.header.height);
}

struct Chunks {
  std::string_view exif;
  bool broken_off = false;  // a chunk other than the image data ends beyond the end of the file
};

Chunks walk_chunks(const std::uint8_t* bytes, std::size_t size) {
  Chunks chunks;
  for (std::size_t at = signature_size; size - at >= 8;) {
    const std::uint32_t length = read_u32(bytes + at);
    const std::string_view type(reinterpret_cast<const char*>(bytes + at + 4), 4);
    at += 8;
    if (type == "IEND") break;
    if (length > size - at) {
      chunks.broken_off = type != "IDAT";
      break;
    }
    if (type == "eXIf") chunks.exif = {reinterpret_cast<const char*>(bytes + at), length};
    at += std::min<std::size_t>(length + std::size_t{4}, size - at);
  }
  return chunks;
}

// ImageMagick's way before there was an eXIf chunk: three lines of heading, then hexadecimal digits in lines.
std::string decode_raw_profile(std::string_view text, const std::string& name) {
  for (int line = 0; line < 3; ++line) {
    const std::size_t end = text.find('\n');
    text.remove_prefix(end == text.npos ? text.size() : end + 1);
  }
  std::string block;
  int digits = 0, value = 0;
  for (const char c : text) {
    if (c == '\n' || c == ' ') continue;
    const char lower = static_cast<char>(c | 0x20);
    const int digit = c >= '0' && c <= '9' ? c - '0' : lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
    if (digit < 0)
      throw ImageError(name +
                       ": its \"Raw profile type exif\" text holds other characters than hexadecimal digits");
    value = value * 16 + digit;
    if (++digits % 2 == 0) {
      block += static_cast<char>(value);
      value = 0;
    }
  }
  return block;
}

int find_orientation(const Reader& reader, std::string_view exif, const std::string& name) {
  std::string_view raw_profile, xmp;
  png_textp texts = nullptr;
  const int count = png_get_text(reader.png, reader.info, &texts, nullptr);
  for (int i = 0; i < count; ++i) {
    const std::string_view key = texts[i].key;
    const std::size_t length = std::max(texts[i].text_length, texts[i].itxt_length);
    const std::string_view text(texts[i].text != nullptr ? texts[i].text : "",
                                texts[i].text != nullptr ? length : 0);
    if (key == "Raw profile type exif") raw_profile = text;
    if (key == "XML:com.adobe.xmp") xmp = text;
  }
  std::optional<int> orientation = exif_orientation(exif);
  if (exif.empty() && !raw_profile.empty())
    orientation = exif_orientation(decode_raw_profile(raw_profile, name));
  if (!orientation) orientation = xmp_orientation(xmp);
  return orientation && *orientation >= 1 && *orientation <= 8 ? *orientation : 1;
}

}  // namespace

PngResult decode_png(const void* data, std::size_t size, const std::string& name,
                     const DecodeOptions& options, Buffer& pixels) {
  const auto* bytes = static_cast<const std::uint8_t*>(data);
  Reader reader;
  reader.header = read_header(bytes, size, name, options);
  const Header& header = reader.header;
  reader.pixels = pixels.reserve(static_cast<std::size_t>(header.height) * header.width * 3);
  std::vector<std::uint8_t> pass_row(header.interlaced ? static_cast<std::size_t>(header.width) * 3 : 0);
  reader.pass_row = pass_row.data();

  if (!push(reader, bytes, size, options.exif_orientation)) {
    if (reader.png == nullptr)
      throw ImageError(name +
                       ": libpng could not start: the headers swsl was built with are of another version");
    throw ImageError(name + ": broken PNG: " + reader.message);
  }
  const Chunks chunks = walk_chunks(bytes, size);
  if (!has_all_rows(reader) || chunks.broken_off)
    throw ImageError(name + ": truncated PNG: its " + std::to_string(size) + " bytes end in " +
                     (chunks.broken_off
                          ? "a chunk"
                          : "pass " + std::to_string(png_get_current_pass_number(reader.png)) + ", row " +
                                std::to_string(png_get_current_row_number(reader.png)) + " of " +
                                std::to_string(header.height)));
  PngResult result{header.height, header.width, 1};
  if (options.exif_orientation) result.orientation = find_orientation(reader, chunks.exif, name);
  return result;
}

}  // namespace swsl::detail

bool swsl::decodes_png() noexcept { return true; }

#else

namespace swsl::detail {

PngResult decode_png(const void*, std::size_t, const std::string& name, const DecodeOptions&, Buffer&) {
  throw UnsupportedFormat(
      name +
      ": a PNG, and swsl was built without PNG: install the headers of libpng (Debian: libpng-dev, "
      "Fedora: libpng-devel) and build swsl again");
}

}  // namespace swsl::detail

bool swsl::decodes_png() noexcept { return false; }

#endif
