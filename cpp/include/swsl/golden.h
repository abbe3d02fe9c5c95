// The check that every frozen module carries: what the exporter got for one input, and how far from that an
// engine may be. An error is compared with the size of the sums that made the answer: swsl/formats/golden.py
// says why.
//
// Functions throw nothing but std::bad_alloc, and may be called from any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include <swsl/api.h>

namespace swsl {

// What a network makes of an image.
struct Outputs {
  std::vector<float> logits;    // classes
  std::vector<float> features;  // D, which the classifier takes
};

struct Golden {
  std::vector<std::int64_t> shape;           // 1×3×H×W, of `golden_input(shape)`
  Outputs outputs;                           // that the exporter got for it
  std::vector<double> weight_norms;          // of each class's weights in the classifier
  std::vector<double> biases;                // their magnitudes
  std::map<std::string, double> tolerances;  // by dtype ("float32", …): the error to accept
};

// The largest tolerances that a file may state: what swsl/formats/golden.py writes.
SWSL_API const std::map<std::string, double>& largest_tolerances();

// ‖actual - expected‖ / ‖expected‖, in double; infinite if either holds a value that is not finite, or sizes
// differ.
SWSL_API double relative_error(std::span<const float> actual, std::span<const float> expected);

struct OutputErrors {
  double features = 0;  // relative_error
  double logits = 0;    // the largest |actual - expected| / (‖weights‖ ‖features‖ + |bias|)

  double largest() const { return std::max(features, logits); }
};
SWSL_API OutputErrors output_errors(const Golden& golden, const Outputs& actual, const Outputs& expected);

// Row-major; element i is (((i * 2654435761) mod 2^32 >> 24) - 128) / 64: every value exact.
SWSL_API std::vector<float> golden_input(std::span<const std::int64_t> shape);

struct SWSL_API GoldenResult {
  OutputErrors errors;
  double tolerance = 0;  // of both

  bool passed() const { return errors.features <= tolerance && errors.logits <= tolerance; }
  std::string text() const;  // "features off by 1e-03 and logits by 2e-04, expected at most 1e-05"
};

}  // namespace swsl
