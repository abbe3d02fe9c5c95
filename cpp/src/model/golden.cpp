#include <swsl/golden.h>

#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <numeric>

namespace swsl {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

bool comparable(std::span<const float> actual, std::span<const float> expected) {
  const auto finite = [](std::span<const float> values) {
    return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
  };
  return actual.size() == expected.size() && finite(actual) && finite(expected);
}

double norm(std::span<const float> values) {
  double squares = 0;
  for (const double value : values) squares += value * value;
  return std::sqrt(squares);
}

// 0 where nothing differs, though the scale be 0 too.
double ratio(double difference, double scale) { return difference == 0 ? 0 : difference / scale; }

}  // namespace

const std::map<std::string, double>& largest_tolerances() {
  static const std::map<std::string, double> known = {
      {"float32", 1e-5}, {"bfloat16", 1e-2}, {"float16", 1e-2}};
  return known;
}

double relative_error(std::span<const float> actual, std::span<const float> expected) {
  if (!comparable(actual, expected)) return infinity;
  double squares = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double difference = double{actual[i]} - expected[i];
    squares += difference * difference;
  }
  return ratio(std::sqrt(squares), norm(expected));
}

OutputErrors output_errors(const Golden& golden, const Outputs& actual, const Outputs& expected) {
  OutputErrors errors{relative_error(actual.features, expected.features), infinity};
  if (!comparable(actual.logits, expected.logits) || expected.logits.size() != golden.weight_norms.size() ||
      expected.logits.size() != golden.biases.size())
    return errors;
  const double size = norm(expected.features);
  errors.logits = 0;
  for (std::size_t i = 0; i < expected.logits.size(); ++i) {
    const double difference = std::abs(double{actual.logits[i]} - expected.logits[i]);
    errors.logits =
        std::max(errors.logits, ratio(difference, golden.weight_norms[i] * size + golden.biases[i]));
  }
  return errors;
}

std::vector<float> golden_input(std::span<const std::int64_t> shape) {
  const auto count = std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint32_t hash = static_cast<std::uint32_t>(i) * 2654435761u;
    values[i] = static_cast<float>(static_cast<int>(hash >> 24) - 128) / 64.0f;
  }
  return values;
}

std::string GoldenResult::text() const {
  char text[128];
  std::snprintf(text, sizeof text, "features off by %.3g and logits by %.3g, expected at most %.3g",
                errors.features, errors.logits, tolerance);
  return text;
}

}  // namespace swsl
