// The arithmetic that makes the pixels what they are, shared by every path, CUDA kernels included.
//
// Pillow resizes 8-bit images in fixed point: coefficients are computed in double, rounded to 22 fractional
// bits, and each of the two passes rounds its sums to 8 bits. Integers leave no room for a difference between
// machines.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SWSL_HOST_DEVICE __host__ __device__
#else
#define SWSL_HOST_DEVICE
#endif

namespace swsl::resample {

constexpr int fraction_bits = 22;

// Half a unit of the result, in which every sum starts, so that the shift rounds to nearest.
constexpr std::int32_t rounding = 1 << (fraction_bits - 1);

// A sum of pixels × coefficients + `rounding`, to 8 bits. The shift must be arithmetic: bicubic sums can be
// negative.
SWSL_HOST_DEVICE static inline std::uint8_t to_pixel(std::int32_t sum) {
  const std::int32_t value = sum >> fraction_bits;
  return static_cast<std::uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

// Rounds half away from zero, as Pillow does. The addition comes before the truncation: std::lround would
// differ where the addition itself rounds.
SWSL_HOST_DEVICE static inline std::int32_t to_fixed(double coefficient) {
  const double scaled = coefficient * (1 << fraction_bits);
  return static_cast<std::int32_t>(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
}

SWSL_HOST_DEVICE static inline double bilinear_weight(double x) {
  if (x < 0) x = -x;
  return x < 1 ? 1 - x : 0;
}

// Keys' kernel with a = -1/2; the order of the operations is part of the definition, since doubles round.
SWSL_HOST_DEVICE static inline double bicubic_weight(double x) {
  constexpr double a = -0.5;
  if (x < 0) x = -x;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

// ToTensor then Normalize: three float32 operations, each of which rounds. 256 pixel values make a table of
// it exact.
SWSL_HOST_DEVICE static inline float normalize(std::uint8_t pixel, float mean, float std) {
  const float unit = static_cast<float>(pixel) / 255.0f;
  const float centred = unit - mean;
  return centred / std;
}

}  // namespace swsl::resample
