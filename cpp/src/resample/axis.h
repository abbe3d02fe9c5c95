// One axis of a resize: where the outputs that the crop keeps come from, and with which coefficients.
#pragma once

#include <cstdint>
#include <vector>

#include <swsl/preprocessor.h>

namespace swsl::resample {

// How one axis of a height × width image becomes one axis of the tensor: resized to `resized`, of which
// [first, first + count) is kept, behind `padding` zero pixels.
struct AxisGeometry {
  int source = 0;
  int resized = 0;
  int first = 0;
  int count = 0;
  int padding = 0;

  bool operator==(const AxisGeometry&) const = default;
};

struct Geometry {
  AxisGeometry rows;
  AxisGeometry columns;

  // Each pass rounds, so their order shows in the pixels. Rows are narrowed first, unless the height shrinks
  // by more than twice as many pixels as the width: that is Pillow 13's rule (python-pillow/Pillow#9549).
  // Pillow 12 turned the order only for images over 100 times as high as wide, earlier versions never.
  bool vertical_first = false;
};

SWSL_API Geometry geometry(const PreprocessSpec& spec, int height, int width);

// Output i of the kept ones is the sum over t < taps[i] of source[start[i] + t] × coefficients[i × stride +
// t].
struct Axis {
  AxisGeometry geometry;
  int begin = 0;  // the source pixels with an influence: [begin, end)
  int end = 0;
  int stride = 0;  // a multiple of 4, so that vectors of coefficients can be loaded
  std::vector<std::int32_t> start;
  std::vector<std::int32_t> taps;
  std::vector<std::int32_t> coefficients;  // zero from taps[i] to stride
};

Axis make_axis(const AxisGeometry& geometry, Interpolation interpolation);

// [begin, end) of the axis, without its coefficients.
struct Span {
  int begin;
  int end;
};
Span source_span(const AxisGeometry& geometry, Interpolation interpolation);

}  // namespace swsl::resample
