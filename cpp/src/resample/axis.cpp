#include "resample/axis.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "resample/kernels/arithmetic.h"

namespace swsl::resample {
namespace {

int fitting(double length, int height, int width) {
  if (!(length <= std::numeric_limits<int>::max()))
    throw std::invalid_argument("image is " + std::to_string(height) + " × " + std::to_string(width) +
                                " (height × width): too elongated, its longer side would be resized to " +
                                std::to_string(length) + " pixels; crop it first");
  return static_cast<int>(length);
}

AxisGeometry centre_crop(int source, int resized, int kept) {
  if (resized < kept) return {source, resized, 0, resized, (kept - resized) / 2};
  // Python's round() goes to the even neighbour of a half, and so does the default mode of nearbyint.
  const int first = static_cast<int>(std::nearbyint((resized - kept) / 2.0));
  return {source, resized, first, kept, 0};
}

// The filter as it lies over the source for one output.
struct Window {
  int start;
  int taps;
  double centre;
};

struct Filter {
  double scale;    // source pixels per output
  double stretch;  // of the filter: antialiasing widens it when shrinking
  double support;  // in source pixels, to each side
};

Filter make_filter(const AxisGeometry& geometry, Interpolation interpolation) {
  const double scale = static_cast<double>(geometry.source) / geometry.resized;
  const double stretch = std::max(scale, 1.0);
  return {scale, stretch, (interpolation == Interpolation::bilinear ? 1.0 : 2.0) * stretch};
}

// The operations and their order are Pillow's: doubles round, and the borders depend on it.
Window window(const Filter& filter, int source, int output) {
  const double centre = (output + 0.5) * filter.scale;
  const int start = std::max(static_cast<int>(centre - filter.support + 0.5), 0);
  const int end = std::min(static_cast<int>(centre + filter.support + 0.5), source);
  return {start, end - start, centre};
}

}  // namespace

Geometry geometry(const PreprocessSpec& spec, int height, int width) {
  const double target_height = std::floor(spec.height / spec.crop_pct);
  const double target_width = std::floor(spec.width / spec.crop_pct);
  double resized_height, resized_width;
  if (target_height == target_width) {
    // torchvision's Resize(int): the longer side is truncated.
    const double shorter = std::min(height, width);
    resized_height = height <= width ? target_height : std::trunc(target_height * height / shorter);
    resized_width = width <= height ? target_width : std::trunc(target_width * width / shorter);
  } else {
    // timm's ResizeKeepRatio: both sides are rounded, halves to even.
    const double ratio = std::min(height / target_height, width / target_width);
    resized_height = std::nearbyint(height / ratio);
    resized_width = std::nearbyint(width / ratio);
  }
  const int to_height = fitting(resized_height, height, width);
  const int to_width = fitting(resized_width, height, width);
  const double lost_rows = static_cast<double>(height) - to_height;
  const double lost_columns = static_cast<double>(width) - to_width;
  return {centre_crop(height, to_height, spec.height), centre_crop(width, to_width, spec.width),
          lost_rows > 0 && lost_rows > 2 * lost_columns};
}

Span source_span(const AxisGeometry& geometry, Interpolation interpolation) {
  // Starts and ends never decrease from one output to the next.
  const Filter filter = make_filter(geometry, interpolation);
  const Window first = window(filter, geometry.source, geometry.first);
  const Window last = window(filter, geometry.source, geometry.first + geometry.count - 1);
  return {first.start, last.start + last.taps};
}

Axis make_axis(const AxisGeometry& geometry, Interpolation interpolation) {
  const auto weight = interpolation == Interpolation::bilinear ? bilinear_weight : bicubic_weight;
  const Filter filter = make_filter(geometry, interpolation);
  const double shrink = 1.0 / filter.stretch;

  Axis axis;
  axis.geometry = geometry;
  const int most_taps = static_cast<int>(std::ceil(filter.support)) * 2 + 1;
  axis.stride = (most_taps + 3) / 4 * 4;
  axis.coefficients.resize(static_cast<std::size_t>(geometry.count) * axis.stride);
  std::vector<double> weights(axis.stride);
  for (int i = 0; i < geometry.count; ++i) {
    const Window at = window(filter, geometry.source, geometry.first + i);
    double sum = 0;
    for (int t = 0; t < at.taps; ++t) {
      weights[t] = weight((t + at.start - at.centre + 0.5) * shrink);
      sum += weights[t];
    }
    for (int t = 0; t < at.taps; ++t) {
      const double normalized = sum != 0 ? weights[t] / sum : weights[t];
      axis.coefficients[static_cast<std::size_t>(i) * axis.stride + t] = to_fixed(normalized);
    }
    axis.start.push_back(at.start);
    axis.taps.push_back(at.taps);
  }
  const Span span = source_span(geometry, interpolation);
  axis.begin = span.begin;
  axis.end = span.end;
  return axis;
}

}  // namespace swsl::resample
