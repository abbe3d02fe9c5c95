// A frozen module: the `.pt` or `.pt2` that `swsl export` writes, and everything it says about itself.
//
//   auto model = swsl::FrozenModel::load("model.pt");
//   const auto& metadata = model.metadata();
//   std::cout << metadata.variant.value_or("fine-tuned") << ": " << metadata.labels.size() << " classes\n";
//
// The file is mapped into memory, not parsed: loading takes no time, and weights are read when an engine
// packs them.
//
// Errors: ModelError, whose message opens with the file's name, for whatever is wrong with the file. Nobody
// has to trust a file to load it: a faulty one costs at most a second and 100 MB over its size.
//
// Thread safety: a FrozenModel does not change after `load`; its const functions may be called from any
// number of threads.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <swsl/api.h>
#include <swsl/batch.h>
#include <swsl/golden.h>
#include <swsl/preprocessor.h>

namespace swsl {

class Archive;
struct Network;

// The file is missing, is no frozen module of a format this version knows, or does not compute what it says
// it computes.
class SWSL_API ModelError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Of another network than ours only the number of classes is known.
struct Architecture {
  std::vector<std::int64_t> layers;  // 4, or none
  std::int64_t groups = 0;
  std::int64_t width_per_group = 0;
  std::int64_t num_classes = 0;
};

// `swsl.json` inside the file, but for the network table.
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

class SWSL_API FrozenModel {
 public:
  static FrozenModel load(const std::string& path);

  // The metadata alone.
  static Metadata read_metadata(const std::string& path) { return load(path).metadata(); }

  const std::string& path() const;
  const Metadata& metadata() const;

  // The network table. Its weights lie in the mapped file, for as long as anybody holds them, and their CRCs
  // are not checked yet.
  const Network& network() const;

  // Whether it holds TorchScript beside the network table, as a `.pt` does: LibTorch runs that, and not the
  // program of torch.export in a `.pt2`.
  bool has_torchscript() const;

  // Runs `compute` (the golden input, 1×3×H×W → what comes of it) for an engine that computes in `dtype`.
  GoldenResult check_golden(const std::function<Outputs(const Batch&)>& compute, ElementType dtype) const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

SWSL_API std::string dtype_name(ElementType dtype);  // "float32", "bfloat16", "float16"

}  // namespace swsl
