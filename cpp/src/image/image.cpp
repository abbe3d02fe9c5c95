#include <swsl/image.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "image/buffer.h"
#include "image/decode_jpeg.h"
#include "image/decode_png.h"
#include "image/orientation.h"
#include "image/plain_jpeg.h"

namespace swsl {
namespace {

using namespace std::string_view_literals;

enum class Format { jpeg, png };

constexpr std::size_t magic_size = 12;

Format recognise(std::string_view bytes, const std::string& name) {
  const auto starts_with = [&](std::string_view magic, std::size_t at = 0) {
    return bytes.size() >= at && bytes.substr(at, magic.size()) == magic;
  };
  if (starts_with("\xFF\xD8\xFF"sv)) return Format::jpeg;
  if (starts_with("\x89PNG\r\n\x1A\n"sv)) return Format::png;
  if (bytes.empty()) throw ImageError(name + ": is empty; expected a JPEG or PNG image");

  const char* other = nullptr;
  if (starts_with("GIF8"sv)) other = "GIF";
  if (starts_with("BM"sv)) other = "BMP";
  if (starts_with("II*\0"sv) || starts_with("MM\0*"sv)) other = "TIFF";
  if (starts_with("RIFF"sv) && starts_with("WEBP"sv, 8)) other = "WebP";
  if (starts_with("ftyp"sv, 4)) other = "HEIF or AVIF";
  if (other != nullptr)
    throw UnsupportedFormat(name + ": is a " + other + " image; swsl decodes JPEG and PNG");

  std::string found;
  for (const char byte : bytes.substr(0, 4)) {
    char digits[4];
    std::snprintf(digits, sizeof digits, " %02X", static_cast<unsigned char>(byte));
    found += digits;
  }
  throw UnsupportedFormat(name + ": begins with the bytes" + found +
                          "; expected a JPEG (FF D8 FF) or PNG (89 50 4E 47) image");
}

ImageError not_opened(const std::string& name) {
  return ImageError(name + ": cannot be opened: " + std::strerror(errno));
}

void check_regular(const struct stat& status, const std::string& name) {
  if (S_ISREG(status.st_mode)) return;
  if (S_ISDIR(status.st_mode)) {
    const int folder = ::open(name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) throw not_opened(name);  // which is why its images did not come instead of it
    ::close(folder);
    throw ImageError(name + ": is a directory; expected an image file");
  }
  const char* kind = S_ISFIFO(status.st_mode) ? "a pipe" : S_ISSOCK(status.st_mode) ? "a socket" : "a device";
  throw ImageError(name + ": is " + kind +
                   "; expected an image file: save its content to one, or pass its bytes");
}

// Never waits, as opening a pipe would, and never touches a device. Sets `size`.
std::FILE* open_regular(const std::string& path, std::size_t& size) {
  if (path.find('\0') != std::string::npos)
    throw ImageError(std::string(path.c_str()) + ": cannot be opened: its name goes on after a zero byte");
  struct stat status;
  if (::stat(path.c_str(), &status) != 0) throw not_opened(path);
  check_regular(status, path);  // before, for opening alone sets a device or a pipe's writer in motion
  const int number = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (number < 0) throw not_opened(path);
  try {
    if (::fstat(number, &status) != 0) throw not_opened(path);
    check_regular(status, path);  // after, for it may be another file now
    std::FILE* handle = ::fdopen(number, "rb");
    if (handle == nullptr) throw not_opened(path);
    size = static_cast<std::size_t>(status.st_size);
    return handle;
  } catch (...) {
    ::close(number);
    throw;
  }
}

// Closes what it holds: the file must not stay open when an error leaves.
struct File {
  std::FILE* handle;
  ~File() { std::fclose(handle); }
};

}  // namespace

struct ImageDecoder::State {
  DecodeOptions options;
  std::string name;
  const void* bytes = nullptr;
  std::size_t size = 0;
  Format format = Format::jpeg;
  bool opened = false;
  bool header_is_fresh = false;  // libjpeg has read the header and nothing after it
  int stored_height = 0, stored_width = 0, orientation = 1;
  detail::JpegDecoder jpeg;
  detail::Buffer file, stored, upright;

  int height() const { return detail::swaps_sides(orientation) ? stored_width : stored_height; }
  int width() const { return detail::swaps_sides(orientation) ? stored_height : stored_width; }

  void check_opened(const char* function) const {
    if (!opened)
      throw std::logic_error(std::string("ImageDecoder::") + function +
                             ": no image is open: call open or open_file first");
  }

  // Uses `name`, which the caller has set.
  void open(const void* new_bytes, std::size_t new_size) {
    opened = false;
    bytes = new_bytes;
    size = new_size;
    const std::size_t visible = std::min(size, magic_size);
    format = recognise({static_cast<const char*>(visible > 0 ? bytes : ""), visible}, name);
    if (format == Format::jpeg) {
      read_jpeg_header();
      stored_height = jpeg.height();
      stored_width = jpeg.width();
      orientation = jpeg.orientation();
    } else {
      const detail::PngResult png = detail::decode_png(bytes, size, name, options, stored);
      stored_height = png.height;
      stored_width = png.width;
      orientation = png.orientation;
    }
    opened = true;
  }

  void read_jpeg_header() {
    jpeg.open(bytes, size, name, options);
    header_is_fresh = true;
  }

  void open_file(const std::string& path, const std::function<void()>& when_read) {
    opened = false;
    name = path;
    std::size_t known = 0;
    std::FILE* handle = open_regular(path, known);
    const File closer{handle};
    std::setvbuf(handle, nullptr, _IONBF, 0);

    // The first bytes alone, so that a film or a disk image is not read to its end before it is refused.
    std::array<char, magic_size> magic;
    std::size_t length = read(handle, magic.data(), magic.size());
    recognise({magic.data(), length}, name);

    // One byte more than the file has, so that the end is seen without growing. One that is being written
    // does grow.
    std::size_t room = std::max(known + 1, std::size_t{1} << 16);
    std::memcpy(file.reserve(room), magic.data(), length);
    while (true) {
      room = file.capacity();
      const std::size_t count = read(handle, file.data() + length, room - length);
      length += count;
      if (length < room) break;
      detail::Buffer larger;
      std::memcpy(larger.reserve(2 * room), file.data(), length);
      std::swap(file, larger);
    }
    if (when_read) when_read();
    open(file.data(), length);
  }

  std::size_t read(std::FILE* handle, void* output, std::size_t count) const {
    const std::size_t got = std::fread(output, 1, count, handle);
    if (std::ferror(handle)) throw ImageError(name + ": cannot be read: " + std::strerror(errno));
    return got;
  }

  // The pixels of `needed`, in the buffer or, without one, in this decoder's own. Returns where the whole
  // image begins.
  const std::uint8_t* decode(const Rect& needed, std::uint8_t* output) {
    const std::size_t total = static_cast<std::size_t>(stored_height) * stored_width * 3;
    const std::ptrdiff_t stored_stride = std::ptrdiff_t{3} * stored_width;
    const bool turned = orientation != 1;
    const std::uint8_t* whole = stored.data();
    if (format == Format::jpeg) {
      if (!header_is_fresh) read_jpeg_header();
      header_is_fresh = false;
      std::uint8_t* target = output != nullptr && !turned ? output : stored.reserve(total);
      jpeg.decode(detail::stored_rectangle(needed, orientation, stored_height, stored_width), target,
                  stored_stride);
      whole = target;
    }
    if (turned) {
      std::uint8_t* target = output != nullptr ? output : upright.reserve(total);
      detail::turn_upright({whole, stored_height, stored_width, stored_stride}, orientation, needed, target,
                           std::ptrdiff_t{3} * width());
      return target;
    }
    if (output != nullptr && whole != output) std::memcpy(output, whole, total);
    return whole;
  }

  std::span<const std::uint8_t> plain_jpeg() {
    if (format != Format::jpeg || orientation != 1) return {};
    if (!header_is_fresh) read_jpeg_header();
    header_is_fresh = false;
    const std::size_t plain = jpeg.plain_size();
    header_is_fresh = plain == 0;
    return {static_cast<const std::uint8_t*>(bytes), plain};
  }

  Image decode_whole() {
    Image image{height(), width(), {}};
    image.pixels.resize(static_cast<std::size_t>(image.height) * image.width * 3);
    decode({0, 0, image.height, image.width}, image.pixels.data());
    return image;
  }
};

ImageDecoder::ImageDecoder(const DecodeOptions& options) : state_(std::make_unique<State>()) {
  if (options.dct_scaling < 0)
    throw std::invalid_argument("DecodeOptions::dct_scaling is " + std::to_string(options.dct_scaling) +
                                "; expected 0 (off) or the shorter side that the image will be resized to");
  if (options.max_pixels < 1)
    throw std::invalid_argument("max_pixels: expected 1 or more, got " + std::to_string(options.max_pixels));
  state_->options = options;
}

ImageDecoder::~ImageDecoder() = default;
ImageDecoder::ImageDecoder(ImageDecoder&&) noexcept = default;
ImageDecoder& ImageDecoder::operator=(ImageDecoder&&) noexcept = default;

void ImageDecoder::open(const void* bytes, std::size_t size, std::string_view name) {
  state_->name = name;
  state_->open(bytes, size);
}

void ImageDecoder::open_file(const std::string& path, const std::function<void()>& when_read) {
  state_->open_file(path, when_read);
}

int ImageDecoder::height() const {
  state_->check_opened("height");
  return state_->height();
}

int ImageDecoder::width() const {
  state_->check_opened("width");
  return state_->width();
}

ImageView ImageDecoder::decode() { return decode({0, 0, height(), width()}); }

ImageView ImageDecoder::decode(const Rect& needed) {
  state_->check_opened("decode");
  const int height = state_->height(), width = state_->width();
  if (needed.top < 0 || needed.left < 0 || needed.height < 1 || needed.width < 1 ||
      needed.top > height - needed.height || needed.left > width - needed.width)
    throw std::invalid_argument("needed is " + std::to_string(needed.height) + " × " +
                                std::to_string(needed.width) + " at row " + std::to_string(needed.top) +
                                ", column " + std::to_string(needed.left) + "; expected a rectangle inside " +
                                state_->name + " (" + std::to_string(height) + " × " + std::to_string(width) +
                                ")");
  return {state_->decode(needed, nullptr), height, width, std::ptrdiff_t{3} * width};
}

std::span<const std::uint8_t> plain_jpeg(ImageDecoder& decoder) {
  decoder.state_->check_opened("plain_jpeg");
  return decoder.state_->plain_jpeg();
}

Image decode_image(const void* bytes, std::size_t size, const DecodeOptions& options, std::string_view name) {
  ImageDecoder decoder(options);
  decoder.open(bytes, size, name);
  return decoder.state_->decode_whole();
}

Image read_image(const std::string& path, const DecodeOptions& options) {
  ImageDecoder decoder(options);
  decoder.open_file(path);
  return decoder.state_->decode_whole();
}

}  // namespace swsl
