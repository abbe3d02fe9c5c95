// A frozen module: the `.pt` that `swsl export` writes, and everything it says about itself.
//
//   auto model = swsl::FrozenModel::load("model.pt");
//   std::cout << model.metadata().variant.value_or("fine-tuned") << ": " << model.metadata().labels.size() << " classes\n";
//   const auto compute = [&](const at::Tensor& batch) { return swsl::Outputs{engine->forward(batch), engine->embed(batch)}; };
//   auto check = model.check_golden(compute, at::kFloat);
//   if (!check.passed()) …
//
// Errors: ModelError, whose message opens with the file's name, for whatever is wrong with the file.
//
// Thread safety: a FrozenModel does not change after `load`; its const functions may be called from any number of threads.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

#include <swsl/api.h>
#include <swsl/preprocessor.h>

namespace torch::jit {
struct Module;  // <torch/script.h>
}

namespace swsl {

// The file is missing, is no frozen module of a format this version knows, or does not compute what it says it computes.
class SWSL_API ModelError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Architecture {
  std::vector<std::int64_t> layers;
  std::int64_t groups = 0;
  std::int64_t width_per_group = 0;
  std::int64_t num_classes = 0;
};

// What a network makes of a batch.
struct Outputs {
  at::Tensor logits;    // N×classes
  at::Tensor features;  // N×D, which the classifier takes
};

// The deterministic input of `golden_input(shape)`, what the exporter got for it, and how far from that an engine may be.
struct Golden {
  std::vector<std::int64_t> shape;   // 1×3×H×W
  std::vector<double> features;      // D
  std::vector<double> logits;        // num_classes
  std::vector<double> weight_norms;  // num_classes: of the classifier's weights
  std::vector<double> biases;        // num_classes: their magnitudes
  std::map<std::string, double> tolerances;  // by dtype ("float32", …): the error to accept from an engine computing in it
};

// `swsl.json` inside the file.
struct Metadata {
  std::int64_t format = 0;
  std::optional<std::string> variant;  // none: fine-tuned or home-made
  Architecture architecture;
  PreprocessSpec preprocess{};
  std::vector<std::string> labels;  // num_classes
  std::optional<std::string> license;
  std::optional<std::string> weights_sha256;
  std::string fingerprint;    // of weights, preprocessing and labels: what tells models apart
  std::string swsl_version;   // that exported it
  std::string torch_version;  // likewise
  Golden golden;
  std::string json;  // the text all this was read from
};

// The largest ‖actual - expected‖ / ‖expected‖ of a row, in double; infinite if either holds a value that is not finite, or
// shapes differ.
SWSL_API double relative_error(const at::Tensor& actual, const at::Tensor& expected);

// An error is compared with the size of the sums that made the answer: swsl/deploy/golden.py says why.
struct OutputErrors {
  double features = 0;  // relative_error
  double logits = 0;    // the largest |actual - expected| / (‖weights‖ ‖features‖ + |bias|)

  double largest() const { return std::max(features, logits); }
};
SWSL_API OutputErrors output_errors(const Golden& golden, const Outputs& actual, const Outputs& expected);

// float32; element i (row-major) is (((i * 2654435761) mod 2^32 >> 24) - 128) / 64: every value exact.
SWSL_API at::Tensor golden_input(const std::vector<std::int64_t>& shape);

struct GoldenResult {
  OutputErrors errors;
  double tolerance = 0;  // of both

  bool passed() const { return errors.features <= tolerance && errors.logits <= tolerance; }
  std::string text() const;  // "features off by 1e-03 and logits by 2e-04, expected at most 1e-05"
};

class SWSL_API FrozenModel {
 public:
  static FrozenModel load(const std::string& path);

  // The metadata alone: the weights stay on the disk.
  static Metadata read_metadata(const std::string& path);

  const std::string& path() const;
  const Metadata& metadata() const;

  // On the CPU, float32, frozen: weights are constants of its methods `forward` and `embed`.
  const torch::jit::Module& module() const;

  // Runs `compute` (batch N×3×H×W float32 on the CPU → outputs on any device, in any dtype) on the golden input.
  GoldenResult check_golden(const std::function<Outputs(const at::Tensor&)>& compute, at::ScalarType dtype) const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

}  // namespace swsl
