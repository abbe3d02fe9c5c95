#include <swsl/preprocessor.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "resample/axis.h"
#include "resample/kernels/scalar.h"
#include "resample/normalization.h"
#include "resample/prepared.h"

namespace swsl {
namespace {

using resample::Normalization;

[[noreturn]] void bad_spec(const std::string& field, const std::string& got, const std::string& expected) {
  throw std::invalid_argument("preprocess spec: " + field + " is " + got + ", expected " + expected);
}

void check_spec(const PreprocessSpec& spec) {
  constexpr int largest = 1 << 15;
  if (spec.height < 1 || spec.width < 1 || spec.height > largest || spec.width > largest)
    bad_spec("input_size", std::to_string(spec.height) + " × " + std::to_string(spec.width),
             "1 to " + std::to_string(largest) + " each");
  const double shorter = spec.height < spec.width ? spec.height : spec.width;
  const double longer = spec.height < spec.width ? spec.width : spec.height;
  if (!(spec.crop_pct > 0 && shorter / spec.crop_pct >= 1 && longer / spec.crop_pct <= largest))
    bad_spec(
        "crop_pct", std::to_string(spec.crop_pct),
        "a positive fraction such as 0.875, with 1 ≤ input_size / crop_pct ≤ " + std::to_string(largest));
  if (spec.interpolation != Interpolation::bilinear && spec.interpolation != Interpolation::bicubic)
    bad_spec("interpolation", std::to_string(static_cast<int>(spec.interpolation)), "bilinear or bicubic");
  for (int c = 0; c < 3; ++c) {
    const auto channel = "[" + std::to_string(c) + "]";
    if (!std::isfinite(static_cast<float>(spec.mean[c])))
      bad_spec("mean" + channel, std::to_string(spec.mean[c]), "a finite number");
    const float std = static_cast<float>(spec.std[c]);
    if (!std::isfinite(std) || std == 0)
      bad_spec("std" + channel, std::to_string(spec.std[c]), "finite and not zero");
  }
}

void check_size(int height, int width) {
  if (height < 1 || width < 1)
    throw std::invalid_argument("image is " + std::to_string(height) + " × " + std::to_string(width) +
                                " (height × width), expected at least one pixel");
}

template <typename Element>
void fill_with_black(Element* output, const Element (&table)[3][256], int rows, int columns, Layout layout) {
  const std::ptrdiff_t plane = std::ptrdiff_t{rows} * columns;
  for (std::ptrdiff_t i = 0; i < plane; ++i)
    for (int c = 0; c < 3; ++c) output[layout == Layout::planar ? c * plane + i : 3 * i + c] = table[c][0];
}

// Kept by each thread from one image to the next.
struct Workspace {
  std::vector<std::uint8_t> kernel;
  std::vector<std::uint8_t> shortened;  // the result of a vertical pass that came first
};

Workspace& workspace() {
  thread_local Workspace mine;
  return mine;
}

#if defined(__x86_64__)
bool has_f16c() {  // Clang knows it by no name
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

}  // namespace

std::string_view isa_name(Isa isa) noexcept {
  switch (isa) {
    case Isa::scalar: break;
    case Isa::neon: return "neon";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
  }
  return "scalar";
}

bool isa_available(Isa isa) noexcept {
#if defined(__x86_64__)
  if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (isa == Isa::avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
#elif defined(__aarch64__)
  if (isa == Isa::neon) return true;
#endif
  return isa == Isa::scalar;
}

Isa default_isa() {
  const char* wanted = std::getenv("SWSL_ISA");
  for (const Isa isa : {Isa::avx512, Isa::avx2, Isa::neon, Isa::scalar}) {
    if (!wanted || !*wanted) {
      if (isa_available(isa)) return isa;
    } else if (isa_name(isa) == wanted) {
      return isa;
    }
  }
  throw std::invalid_argument("SWSL_ISA is \"" + std::string(wanted) +
                              "\", expected scalar, neon, avx2 or avx512");
}

struct Preprocessor::State {
  PreprocessSpec spec;
  Isa isa;
  Normalization normalization;
  resample::AxisCache axes;

  State(const PreprocessSpec& spec, Isa isa)
      : spec(spec),
        isa(isa),
        normalization(resample::make_normalization(spec)),
        axes(spec.interpolation, isa) {}
};

Preprocessor::Preprocessor(const PreprocessSpec& spec) : Preprocessor(spec, default_isa()) {}

Preprocessor::Preprocessor(const PreprocessSpec& spec, Isa isa) {
  check_spec(spec);
  if (!isa_available(isa))
    throw std::invalid_argument(
        "instruction set " + std::string(isa_name(isa)) +
        ": this CPU or this build of swsl does not have it; take scalar, or unset SWSL_ISA");
  state_ = std::make_unique<State>(spec, isa);
}

Preprocessor::~Preprocessor() = default;
Preprocessor::Preprocessor(Preprocessor&&) noexcept = default;
Preprocessor& Preprocessor::operator=(Preprocessor&&) noexcept = default;

const PreprocessSpec& Preprocessor::spec() const noexcept { return state_->spec; }

Isa Preprocessor::isa() const noexcept { return state_->isa; }

Rect Preprocessor::source_rectangle(int height, int width) const {
  check_size(height, width);
  const resample::Geometry geometry = resample::geometry(state_->spec, height, width);
  const resample::Span rows = resample::source_span(geometry.rows, state_->spec.interpolation);
  const resample::Span columns = resample::source_span(geometry.columns, state_->spec.interpolation);
  return {rows.begin, columns.begin, rows.end - rows.begin, columns.end - columns.begin};
}

void Preprocessor::operator()(const ImageView& image, float* output) const {
  (*this)(image, output, ElementType::float32, Layout::planar);
}

void Preprocessor::operator()(const ImageView& image, void* output, ElementType type, Layout layout) const {
  check_size(image.height, image.width);
  if (!image.data) throw std::invalid_argument("image.data is null, expected RGB pixels");
  if (!output) throw std::invalid_argument("output is null, expected room for 3 × height × width elements");
  const PreprocessSpec& spec = state_->spec;
  const Normalization& normalization = state_->normalization;
  const resample::Geometry geometry = resample::geometry(spec, image.height, image.width);
  // Black before normalisation, as torchvision pads the Pillow image.
  if (geometry.rows.count < spec.height || geometry.columns.count < spec.width) {
    switch (type) {
      case ElementType::float32:
        fill_with_black(static_cast<float*>(output), normalization.float32, spec.height, spec.width, layout);
        break;
      case ElementType::bfloat16:
        fill_with_black(static_cast<std::uint16_t*>(output), normalization.bfloat16, spec.height, spec.width,
                        layout);
        break;
      case ElementType::float16:
        fill_with_black(static_cast<std::uint16_t*>(output), normalization.float16, spec.height, spec.width,
                        layout);
        break;
    }
  }
  const bool interleaved = layout == Layout::channels_last;
  const std::ptrdiff_t pixel = interleaved ? 3 : 1;
  const std::ptrdiff_t skipped =
      (std::ptrdiff_t{geometry.rows.padding} * spec.width + geometry.columns.padding) * pixel;
  const int element_size = type == ElementType::float32 ? 4 : 2;
  const resample::Destination destination{
      static_cast<char*>(output) + skipped * element_size, static_cast<resample::Element>(type), interleaved,
      interleaved ? 1 : std::ptrdiff_t{spec.height} * spec.width, spec.width * pixel};

  using resample::Pass;
  const auto columns = state_->axes.get(geometry.columns, Pass::horizontal);
  auto rows = state_->axes.get(geometry.rows, Pass::vertical);
  const std::uint8_t* pixels =
      image.data + rows->axis.begin * image.row_stride + std::ptrdiff_t{3} * columns->axis.begin;
  std::ptrdiff_t row_stride = image.row_stride;
  Workspace& scratch = workspace();
  if (geometry.vertical_first) {
    // The kernels narrow first. They get rows that have been through their pass already, and an axis that
    // leaves them alone.
    const std::ptrdiff_t row_bytes = std::ptrdiff_t{3} * (columns->axis.end - columns->axis.begin);
    const int count = geometry.rows.count;
    scratch.shortened.resize(row_bytes * count);
    resample::vertical(state_->isa, pixels, row_stride, *rows, row_bytes, scratch.shortened.data());
    rows = state_->axes.get({count, count, 0, count, 0}, Pass::vertical);
    pixels = scratch.shortened.data();
    row_stride = row_bytes;
  }
  resample::resample(state_->isa, pixels, row_stride, *rows, *columns, normalization, destination,
                     scratch.kernel);
}

}  // namespace swsl
