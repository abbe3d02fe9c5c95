// What a resize kernel is given and must do. No templates and no containers: the files compiled for one
// instruction set include this, and an inline function of theirs could be kept by the linker for a CPU that
// cannot run it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace swsl::resample {

// See `Axis`.
struct AxisView {
  int begin;
  int end;
  int count;
  int stride;
  const std::int32_t* start;
  const std::int32_t* taps;
  const std::int32_t* coefficients;
};

enum class Element { float32, bfloat16, float16 };  // as ElementType

// The three steps of `normalize`, and their results for each channel and pixel value.
struct Normalization {
  float mean[3];
  float std[3];
  float float32[3][256];
  std::uint16_t bfloat16[3][256];
  std::uint16_t float16[3][256];
};

// Element (channel, row, column) lies at data + channel × plane + row × row_stride + column × (interleaved ?
// 3 : 1) elements.
struct Destination {
  void* data;
  Element element;
  bool interleaved;
  std::ptrdiff_t plane;
  std::ptrdiff_t row_stride;
};

struct Job {
  const std::uint8_t*
      pixels;  // under (rows.begin, columns.begin); nothing beyond rows.end and columns.end is read
  std::ptrdiff_t row_stride;
  AxisView rows;
  AxisView columns;
  const Normalization* normalization;
  Destination destination;
};

}  // namespace swsl::resample
