#include "image/decode_jpeg.h"

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string_view>

#include "image/limits.h"
#include "image/orientation.h"

#if SWSL_WITH_JPEG

#include <jpeglib.h>
// After jpeglib.h, which it needs.
#include <jerror.h>

namespace swsl::detail {
namespace {

// libjpeg-turbo changed its smoothing with release 3, which is in Pillow's wheels.
#ifdef LIBJPEG_TURBO_VERSION
#define SWSL_TEXT_OF(macro) SWSL_TEXT(macro)
#define SWSL_TEXT(text) #text
constexpr const char* library = "libjpeg-turbo " SWSL_TEXT_OF(LIBJPEG_TURBO_VERSION);
constexpr bool smooths_as_pillow = LIBJPEG_TURBO_VERSION_NUMBER >= 3'000'000;
#else
constexpr const char* library = "a libjpeg that is not libjpeg-turbo";
constexpr bool smooths_as_pillow = false;
#endif

enum class Status { done, truncated, broken, too_many_scans, smoothed };

// Everything that a longjmp may cross: plain data, and below it functions whose locals have no destructors.
struct Reader {
  jpeg_decompress_struct info;
  jpeg_error_mgr errors;
  jpeg_source_mgr source;
  jpeg_progress_mgr progress;
  std::jmp_buf on_error;
  char message[JMSG_LENGTH_MAX];
  bool created;
  bool ran_out;  // libjpeg asked for bytes beyond the end
};

Reader& reader_of(j_common_ptr info) { return *static_cast<Reader*>(info->client_data); }

[[noreturn]] void leave(j_common_ptr info) {
  Reader& reader = reader_of(info);
  reader.errors.format_message(info, reader.message);
  std::longjmp(reader.on_error, static_cast<int>(Status::broken));
}

// What libjpeg calls between the rows of blocks of all scans but those that it need not read.
void count_scans(j_common_ptr info) {
  if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number <= max_scans) return;
  std::longjmp(reader_of(info).on_error, static_cast<int>(Status::too_many_scans));
}

void ignore_message(j_common_ptr) {}
void ignore_warning(j_common_ptr, int) {}
void ignore_source(j_decompress_ptr) {}

// Suspend where the data end, as Pillow does, instead of making up an end of image: only so is truncation
// noticed.
boolean run_out(j_decompress_ptr info) {
  reader_of(reinterpret_cast<j_common_ptr>(info)).ran_out = true;
  return FALSE;
}

void skip_bytes(j_decompress_ptr info, long count) {
  if (count <= 0) return;
  jpeg_source_mgr& source = *info->src;
  const std::size_t step = std::min(static_cast<std::size_t>(count), source.bytes_in_buffer);
  source.next_input_byte += step;
  source.bytes_in_buffer -= step;
  if (step < static_cast<std::size_t>(count)) run_out(info);
}

int scale_denominator(int shorter_side, int target) {
  if (target <= 0) return 1;
  for (int denominator : {8, 4, 2})
    if ((shorter_side + denominator - 1) / denominator >= 2 * std::int64_t{target}) return denominator;
  return 1;
}

Status read_header(Reader& reader, const void* bytes, std::size_t size, const DecodeOptions& options) {
  if (setjmp(reader.on_error)) return Status::broken;
  jpeg_decompress_struct& info = reader.info;
  reader.ran_out = false;
  // A new object for each image: a kept one would lend the last image's tables to an image that lacks its
  // own.
  if (reader.created) jpeg_destroy_decompress(&info);
  reader.created = false;
  info.err = jpeg_std_error(&reader.errors);
  reader.errors.error_exit = leave;
  reader.errors.output_message = ignore_message;
  reader.errors.emit_message = ignore_warning;
  info.client_data = &reader;
  jpeg_create_decompress(&info);
  reader.created = true;
  info.progress = &reader.progress;
  reader.progress.progress_monitor = count_scans;
  info.src = &reader.source;
  reader.source.init_source = ignore_source;
  reader.source.fill_input_buffer = run_out;
  reader.source.skip_input_data = skip_bytes;
  reader.source.resync_to_restart = jpeg_resync_to_restart;
  reader.source.term_source = ignore_source;
  reader.source.next_input_byte = static_cast<const JOCTET*>(bytes);
  reader.source.bytes_in_buffer = size;
  jpeg_save_markers(&info, JPEG_APP0 + 1, options.exif_orientation ? 0xFFFF : 0);

  int found;
  do {
    found = jpeg_read_header(&info, FALSE);
  } while (found == JPEG_HEADER_TABLES_ONLY);
  if (found == JPEG_SUSPENDED || reader.ran_out) return Status::truncated;

  info.out_color_space = info.num_components == 4 ? JCS_CMYK : JCS_RGB;
  info.scale_num = 1;
  info.scale_denom =
      scale_denominator(static_cast<int>(std::min(info.image_width, info.image_height)), options.dct_scaling);
  if (info.num_components == 1 || info.num_components >= 3) jpeg_calc_output_dimensions(&info);
  return Status::done;
}

// The byte behind the end of the image, if that is the next marker that ends the entropy-coded data; else
// null. If it is, decoding the rest cannot run out of bytes: libjpeg stops at that marker, and neither skips
// it when it looks for restart markers.
const JOCTET* end_of_image(const jpeg_decompress_struct& info) {
  const auto is_restart = [](int marker) { return marker >= JPEG_RST0 && marker <= JPEG_RST0 + 7; };
  const JOCTET* at = info.src->next_input_byte;
  if (info.unread_marker != 0 && !is_restart(info.unread_marker))
    return info.unread_marker == JPEG_EOI ? at : nullptr;
  const JOCTET* const end = at + info.src->bytes_in_buffer;
  while (at < end) {
    at = static_cast<const JOCTET*>(std::memchr(at, 0xFF, static_cast<std::size_t>(end - at)));
    if (at == nullptr) return nullptr;
    while (at < end && *at == 0xFF) ++at;
    if (at == end) return nullptr;
    if (*at != 0 && !is_restart(*at)) return *at == JPEG_EOI ? at + 1 : nullptr;
    ++at;
  }
  return nullptr;
}

bool is_plain(const jpeg_decompress_struct& info) {
  const bool baseline = !info.progressive_mode && !info.arith_code && info.data_precision == 8 &&
                        info.Ss == 0 && info.Se == DCTSIZE2 - 1;
  if (!baseline || info.num_components != 3 || info.comps_in_scan != 3 || info.scale_denom != 1) return false;
  // Where two markers contradict each other, decoders do.
  if (info.jpeg_color_space != JCS_YCbCr || (info.saw_Adobe_marker && info.Adobe_transform != 1))
    return false;
  const jpeg_component_info &light = info.comp_info[0], &blue = info.comp_info[1], &red = info.comp_info[2];
  return light.h_samp_factor <= 2 && light.v_samp_factor <= 2 && blue.h_samp_factor == 1 &&
         blue.v_samp_factor == 1 && red.h_samp_factor == 1 && red.v_samp_factor == 1;
}

// Whether libjpeg smooths between blocks, as its smoothing_ok() has it: a progressive file whose first ten
// coefficients are not all there. Known once every scan has been read.
bool smooths(const jpeg_decompress_struct& info) {
  if (!info.progressive_mode || info.coef_bits == nullptr) return false;
  bool useful = false;
  for (int c = 0; c < info.num_components; ++c) {
    const int* const bits = info.coef_bits[c];  // that are missing of each coefficient, -1: all
    if (bits[0] < 0) return false;
    useful = useful || std::any_of(bits + 1, bits + 10, [](int missing) { return missing != 0; });
  }
  return useful;
}

// Finds what is wrong with the tables.
Status start(Reader& reader) {
  if (setjmp(reader.on_error)) return Status::broken;
  return jpeg_start_decompress(&reader.info) ? Status::done : Status::truncated;
}

// Adobe's inverted CMYK to RGB by Pillow's formula.
void convert_cmyk(const JSAMPLE* cmyk, std::uint8_t* rgb, int width) {
  for (int x = 0; x < width; ++x, cmyk += 4, rgb += 3) {
    const int light = cmyk[3];  // 255 - key
    for (int c = 0; c < 3; ++c) {
      const int product = (255 - cmyk[c]) * light + 128;
      rgb[c] = static_cast<std::uint8_t>(std::max(0, light - (((product >> 8) + product) >> 8)));
    }
  }
}

Status decode_rows(Reader& reader, const Rect& needed, std::uint8_t* pixels, std::ptrdiff_t row_stride) {
  switch (setjmp(reader.on_error)) {
    case 0: break;
    case static_cast<int>(Status::too_many_scans): return Status::too_many_scans;
    default: return Status::broken;
  }
  jpeg_decompress_struct& info = reader.info;
  if (!jpeg_start_decompress(&info)) return Status::truncated;
  const bool smoothed = smooths(info);
  if (smoothed && !smooths_as_pillow) return Status::smoothed;
  const auto height = info.output_height;
  const auto top = static_cast<JDIMENSION>(needed.top), bottom = top + static_cast<JDIMENSION>(needed.height);

  // Rows above and columns beside the needed ones are passed over where that leaves the others as they are.
  JDIMENSION left = 0, unseen_rows = 0;
#ifdef LIBJPEG_TURBO_VERSION
  // Under DCT scaling libjpeg gives fourfold subsampled colours a scale of their own, and its crop then gets
  // their edges wrong. Smoothing looks at the neighbours of each block, which the edge of a crop would lack.
  if (!smoothed && (info.scale_denom == 1 || (info.max_h_samp_factor <= 2 && info.max_v_samp_factor <= 2))) {
    // At the edge of a crop, upsampling of the colours lacks the neighbours that it looks at.
    const int margin = 2 * info.max_h_samp_factor;
    left = static_cast<JDIMENSION>(std::max(0, needed.left - margin));
    const JDIMENSION right =
        std::min(info.output_width, static_cast<JDIMENSION>(needed.left + needed.width + margin));
    if (left > 0 || right < info.output_width) {
      JDIMENSION width = right - left;
      jpeg_crop_scanline(&info, &left, &width);
    }
    const auto block_rows = static_cast<JDIMENSION>(info.max_v_samp_factor * info.min_DCT_scaled_size);
    if (top >= 2 * block_rows) unseen_rows = (top / block_rows - 1) * block_rows;
  }
#endif

  const auto scratch_size = static_cast<std::size_t>(info.output_width) * info.output_components;
  JSAMPROW scratch = static_cast<JSAMPROW>(
      (*info.mem->alloc_large)(reinterpret_cast<j_common_ptr>(&info), JPOOL_IMAGE, scratch_size));
  std::uint8_t* const first = pixels + std::ptrdiff_t{3} * left;

#ifdef LIBJPEG_TURBO_VERSION
  if (unseen_rows > 0) jpeg_skip_scanlines(&info, unseen_rows);
#endif
  // jpeg_skip_scanlines does not report that it was suspended.
  if (reader.ran_out) return Status::truncated;
  while (info.output_scanline < top)
    if (jpeg_read_scanlines(&info, &scratch, 1) == 0) return Status::truncated;

  while (info.output_scanline < bottom) {
    const JDIMENSION y = info.output_scanline;
    if (info.num_components == 4) {
      if (jpeg_read_scanlines(&info, &scratch, 1) == 0) return Status::truncated;
      convert_cmyk(scratch, first + y * row_stride, static_cast<int>(info.output_width));
      continue;
    }
    JSAMPROW rows[16];
    const JDIMENSION count = std::min<JDIMENSION>(bottom - y, 16);
    for (JDIMENSION i = 0; i < count; ++i) rows[i] = first + (y + i) * row_stride;
    if (jpeg_read_scanlines(&info, rows, count) == 0) return Status::truncated;
  }

  // With several scans everything has been read before the first row came out.
  if (info.output_scanline < height && (jpeg_has_multiple_scans(&info) || end_of_image(info) != nullptr)) {
    jpeg_abort_decompress(&info);
    return Status::done;
  }
  while (info.output_scanline < height)
    if (jpeg_read_scanlines(&info, &scratch, 1) == 0) return Status::truncated;
  // False if the end marker is missing, but every pixel is there.
  (void)jpeg_finish_decompress(&info);
  return Status::done;
}

bool is_unsupported(int code) {
  switch (code) {
    case JERR_ARITH_NOTIMPL:
    case JERR_BAD_PRECISION:
    case JERR_CCIR601_NOTIMPL:
    case JERR_CONVERSION_NOTIMPL:
    case JERR_FRACT_SAMPLE_NOTIMPL:
    case JERR_NOTIMPL:
    case JERR_NOT_COMPILED:
    case JERR_SOF_UNSUPPORTED: return true;
    default: return false;
  }
}

int find_orientation(const jpeg_decompress_struct& info) {
  constexpr std::string_view exif{"Exif\0\0", 6}, xmp{"http://ns.adobe.com/xap/1.0/\0", 29};
  std::string block;
  std::string_view packet;
  for (const jpeg_marker_struct* marker = info.marker_list; marker != nullptr; marker = marker->next) {
    const std::string_view data(reinterpret_cast<const char*>(marker->data), marker->data_length);
    if (data.substr(0, exif.size()) == exif)
      block += block.empty() ? data : data.substr(exif.size());
    else if (data.substr(0, xmp.size()) == xmp)
      packet = data.substr(xmp.size());
  }
  std::optional<int> orientation = exif_orientation(block);
  if (!orientation) orientation = xmp_orientation(packet);
  return orientation && *orientation >= 1 && *orientation <= 8 ? *orientation : 1;
}

}  // namespace

struct JpegDecoder::State {
  Reader reader{};
  const std::string* name = nullptr;
  std::size_t size = 0;
  int orientation = 1;

  ~State() {
    if (reader.created) jpeg_destroy_decompress(&reader.info);
  }

  void check(Status status) const {
    if (status == Status::done) return;
    if (status == Status::truncated) {
      std::string where = "in its header";
      if (reader.info.output_height > 0)
        where = "before row " + std::to_string(reader.info.output_scanline) + " of " +
                std::to_string(reader.info.output_height) + " was complete";
      throw ImageError(*name + ": truncated JPEG: its " + std::to_string(size) + " bytes end " + where);
    }
    if (status == Status::too_many_scans)
      throw ImageError(*name + ": a JPEG of more than " + std::to_string(max_scans) +
                       " scans, each of which goes through the whole image; " + "expected at most " +
                       std::to_string(max_scans));
    if (status == Status::smoothed)
      throw UnsupportedFormat(*name + ": a progressive JPEG that lacks scans; swsl was built with " +
                              library + ", which smooths what is " +
                              "missing otherwise than Pillow's libjpeg-turbo 3: build swsl with that, or "
                              "decode by Pillow and pass pixels");
    if (is_unsupported(reader.errors.msg_code))
      throw UnsupportedFormat(*name + ": a kind of JPEG that this build does not decode: " + reader.message);
    throw ImageError(*name + ": broken JPEG: " + reader.message);
  }
};

JpegDecoder::JpegDecoder() : state_(std::make_unique<State>()) {}
JpegDecoder::~JpegDecoder() = default;

void JpegDecoder::open(const void* bytes, std::size_t size, const std::string& name,
                       const DecodeOptions& options) {
  State& state = *state_;
  state.name = &name;
  state.size = size;
  state.orientation = 1;
  state.check(read_header(state.reader, bytes, size, options));

  const jpeg_decompress_struct& info = state.reader.info;
  if (info.num_components != 1 && info.num_components != 3 && info.num_components != 4)
    throw ImageError(name + ": a JPEG of " + std::to_string(info.num_components) +
                     " components; expected 1 (grey), 3 (colour) or 4 (CMYK)");
  check_dimensions(name, info.image_height, info.image_width, options);
  if (options.exif_orientation) state.orientation = find_orientation(info);
}

std::size_t JpegDecoder::plain_size() {
  Reader& reader = state_->reader;
  if (!is_plain(reader.info)) return 0;
  const JOCTET* const end = end_of_image(reader.info);
  if (end == nullptr) return 0;
  const std::size_t behind =
      static_cast<std::size_t>(reader.source.next_input_byte + reader.source.bytes_in_buffer - end);
  state_->check(start(reader));
  return state_->size - behind;
}

int JpegDecoder::height() const { return static_cast<int>(state_->reader.info.output_height); }
int JpegDecoder::width() const { return static_cast<int>(state_->reader.info.output_width); }
int JpegDecoder::orientation() const { return state_->orientation; }

void JpegDecoder::decode(const Rect& needed, std::uint8_t* pixels, std::ptrdiff_t row_stride) {
  state_->check(decode_rows(state_->reader, needed, pixels, row_stride));
}

}  // namespace swsl::detail

bool swsl::decodes_jpeg() noexcept { return true; }

#else

namespace swsl::detail {

struct JpegDecoder::State {};

JpegDecoder::JpegDecoder() = default;
JpegDecoder::~JpegDecoder() = default;

void JpegDecoder::open(const void*, std::size_t, const std::string& name, const DecodeOptions&) {
  throw UnsupportedFormat(
      name +
      ": a JPEG, and swsl was built without JPEG: install the headers of libjpeg-turbo (Debian: "
      "libjpeg62-turbo-dev, Fedora: libjpeg-turbo-devel) and build swsl again");
}

int JpegDecoder::height() const { return 0; }
int JpegDecoder::width() const { return 0; }
int JpegDecoder::orientation() const { return 1; }
std::size_t JpegDecoder::plain_size() { return 0; }
void JpegDecoder::decode(const Rect&, std::uint8_t*, std::ptrdiff_t) {}

}  // namespace swsl::detail

bool swsl::decodes_jpeg() noexcept { return false; }

#endif
