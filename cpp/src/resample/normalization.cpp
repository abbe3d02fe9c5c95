#include "resample/normalization.h"

#include <bit>
#include <cmath>
#include <cstdint>

#include "resample/kernels/arithmetic.h"

namespace swsl::resample {
namespace {

// Round to nearest even; the pixels' values are finite, so NaN needs no care.
std::uint16_t to_bfloat16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

std::uint16_t to_float16(float value) {
  const auto sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000 : 0);
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  int exponent;
  std::frexp(magnitude, &exponent);
  if (magnitude < 0x1p-14f) exponent = -13;  // subnormal: the spacing no longer shrinks
  // In units of the last of 11 bits; a carry out of the mantissa raises the exponent field, as it should.
  const auto units = static_cast<std::uint32_t>(std::nearbyint(std::ldexp(magnitude, 11 - exponent)));
  return static_cast<std::uint16_t>(sign | (units + ((exponent + 13) << 10)));
}

}  // namespace

Normalization make_normalization(const PreprocessSpec& spec) {
  Normalization result;
  for (int c = 0; c < 3; ++c) {
    result.mean[c] = static_cast<float>(spec.mean[c]);
    result.std[c] = static_cast<float>(spec.std[c]);
    for (int pixel = 0; pixel < 256; ++pixel) {
      const float value = normalize(static_cast<std::uint8_t>(pixel), result.mean[c], result.std[c]);
      result.float32[c][pixel] = value;
      result.bfloat16[c][pixel] = to_bfloat16(value);
      result.float16[c][pixel] = to_float16(value);
    }
  }
  return result;
}

}  // namespace swsl::resample
