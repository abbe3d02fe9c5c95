// 8-bit RGB pixels to what the network takes: the same floats as timm's evaluation transform on a Pillow
// image.
//
//   swsl::Preprocessor preprocessor(model.metadata().preprocess);
//   std::vector<float> input(3 * 224 * 224);
//   preprocessor(image.view(), input.data());
//
// Shorter side to floor(size / crop_pct) by Pillow's 8-bit antialiased filter (for sizes that are not square:
// whatever timm does), centre crop with torchvision's rounding and zero padding, / 255, (x - mean) / std,
// each step rounded to float32.
//
// Every instruction set gives the same bytes; `Isa::scalar` is the readable definition. The fastest one that
// the CPU has is taken unless the constructor or the environment variable SWSL_ISA (scalar, neon, avx2,
// avx512) says otherwise.
//
// Errors: std::invalid_argument for a spec that means nothing, an instruction set that this CPU or build
// lacks, an image without pixels, one whose resized size does not fit an int.
//
// Thread safety: const methods may be called from any number of threads at once. Scratch memory belongs to
// the calling thread and is kept, so that images after the first cost no allocation while their sizes repeat.
#pragma once

#include <swsl/api.h>
#include <swsl/batch.h>
#include <swsl/image.h>

#include <array>
#include <memory>
#include <string_view>

namespace swsl {

enum class Interpolation { bilinear, bicubic };

// The numbers come with the frozen module; nothing here has a default.
struct PreprocessSpec {
  int height;  // of the tensor
  int width;
  double crop_pct;
  Interpolation interpolation;
  std::array<double, 3> mean;  // RGB, of values in [0, 1]
  std::array<double, 3> std;
};

// Of one image: 3 planes of height × width, or height × width × 3.
enum class Layout { planar, channels_last };

// avx512 stands for F, BW, VL, DQ, VBMI and VNNI (Ice Lake, Zen 4 and later); avx2 for AVX2, FMA and F16C.
enum class Isa { scalar, neon, avx2, avx512 };

SWSL_API std::string_view isa_name(Isa isa) noexcept;
SWSL_API bool isa_available(Isa isa) noexcept;

// What SWSL_ISA names, else the best that is available. Throws std::invalid_argument if SWSL_ISA cannot be
// followed.
SWSL_API Isa default_isa();

class SWSL_API Preprocessor {
 public:
  explicit Preprocessor(const PreprocessSpec& spec);
  Preprocessor(const PreprocessSpec& spec, Isa isa);
  ~Preprocessor();
  Preprocessor(Preprocessor&&) noexcept;
  Preprocessor& operator=(Preprocessor&&) noexcept;

  const PreprocessSpec& spec() const noexcept;
  Isa isa() const noexcept;

  // The only pixels of a height × width image that have an influence on its tensor. Nothing else is read, so
  // a decoder need not produce the rest.
  Rect source_rectangle(int height, int width) const;

  // `image` describes the whole image, of which only the pixels inside `source_rectangle` are read. `output`:
  // 3 × spec().height × spec().width floats, planar.
  void operator()(const ImageView& image, float* output) const;

  // `output`: as many elements of `type`, in `layout`: one image of a contiguous batch.
  void operator()(const ImageView& image, void* output, ElementType type, Layout layout) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace swsl
