// A frozen module: the `.pt` that `swsl export` writes, and everything it says about itself.
//
//   auto model = swsl::FrozenModel::load("model.pt");
//   std::cout << model.metadata().variant.value_or("fine-tuned") << ": " << model.metadata().labels.size() << " classes\n";
//   auto check = model.check_golden([&](const at::Tensor& batch) { return engine->forward(batch); }, at::kFloat);
//   if (!check.passed()) …
//
// Errors: ModelError, whose message opens with the file's name, for whatever is wrong with the file.
//
// Thread safety: a FrozenModel does not change after `load`; its const functions may be called from any number of threads.
#pragma once

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

// The deterministic input of `golden_input(shape)`, and the logits that the exporter got for it.
struct Golden {
  std::vector<std::int64_t> shape;  // 1×3×H×W
  std::vector<double> logits;       // num_classes
  std::map<std::string, double> tolerances;  // by dtype ("float32", …): the relative error to accept from an engine computing in it
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

// max |actual - expected| / max |expected|, in double; infinite if either holds a value that is not finite, or shapes differ.
SWSL_API double relative_error(const at::Tensor& actual, const at::Tensor& expected);

// float32; element i (row-major) is (((i * 2654435761) mod 2^32 >> 24) - 128) / 64: every value exact.
SWSL_API at::Tensor golden_input(const std::vector<std::int64_t>& shape);

struct GoldenResult {
  double relative_error = 0;
  double tolerance = 0;

  bool passed() const { return relative_error <= tolerance; }
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

  // Runs `forward` (batch N×3×H×W float32 on the CPU → logits N×classes, any device and dtype) on the golden input.
  GoldenResult check_golden(const std::function<at::Tensor(const at::Tensor&)>& forward, at::ScalarType dtype) const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

}  // namespace swsl
