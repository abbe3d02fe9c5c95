#include <swsl/frozen_model.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <numeric>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <swsl/engine.h>

#include "libtorch/fresh_thread.h"
#include "model/json.h"

namespace swsl {
namespace {

constexpr std::int64_t known_format = 2;
constexpr const char* metadata_record = "extra/swsl.json";

// LibTorch's messages end in a C++ backtrace, which tells a user nothing.
std::string first_lines(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  return torch_error ? torch_error->what_without_backtrace() : error.what();
}

std::string describe(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (const auto n : shape) text += (text.empty() ? "" : "×") + std::to_string(n);
  return text;
}

std::string read_record(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  const auto status = fs::status(path, ignored);
  if (!fs::exists(status))
    throw ModelError(path + ": no such file; expected a frozen module (make one with: swsl export)");
  if (fs::is_directory(status)) throw ModelError(path + ": is a directory, expected a frozen module (.pt)");
  std::ifstream file(path, std::ios::binary);
  char magic[4] = {};
  if (!file) throw ModelError(path + ": cannot be opened; check its permissions");
  file.read(magic, sizeof magic);
  if (file.gcount() != 4 || !std::equal(magic, magic + 4, "PK\3\4"))
    throw ModelError(
        path +
        ": not a TorchScript archive (it does not start as a zip file); expected a frozen module, as"
        " swsl export writes it. Weights saved by torch.save have to be exported first");
  try {
    caffe2::serialize::PyTorchStreamReader reader(path);
    if (!reader.hasRecord(metadata_record)) {
      const bool script = reader.hasRecord("constants.pkl");
      throw ModelError(path +
                       (script
                            ? ": a TorchScript module without swsl.json inside: not exported by swsl"
                            : ": a zip file, but no TorchScript module; weights have to be exported first") +
                       " (make a frozen module with: swsl export)");
    }
    auto [data, size] = reader.getRecord(metadata_record);
    return std::string(static_cast<const char*>(data.get()), size);
  } catch (const c10::Error& error) {
    throw ModelError(path + ": damaged or incomplete archive: " + first_lines(error));
  }
}

std::vector<std::int64_t> integers(const Json& array) {
  std::vector<std::int64_t> out;
  for (const auto& item : array.items()) out.push_back(item.integer());
  return out;
}

std::vector<double> numbers(const Json& array) {
  std::vector<double> out;
  for (const auto& item : array.items()) out.push_back(item.number());
  return out;
}

std::array<double, 3> three(const Json& array, const char* name) {
  if (array.items().size() != 3)
    throw JsonError(std::string(name) + ": expected 3 numbers, found " +
                    std::to_string(array.items().size()));
  return {array.items()[0].number(), array.items()[1].number(), array.items()[2].number()};
}

std::optional<std::string> optional_string(const Json& value) {
  return value.is_null() ? std::nullopt : std::optional(value.string());
}

PreprocessSpec parse_spec(const Json& json) {
  PreprocessSpec spec{};
  const auto size = integers(json.at("input_size"));
  constexpr std::int64_t longest = 1 << 16;
  if (size.size() != 2 || *std::min_element(size.begin(), size.end()) < 1 ||
      *std::max_element(size.begin(), size.end()) > longest)
    throw JsonError("preprocess.input_size: expected [height, width], each from 1 to 65536, found " +
                    describe(size));
  spec.height = static_cast<int>(size[0]);
  spec.width = static_cast<int>(size[1]);
  spec.crop_pct = json.at("crop_pct").number();
  const auto& interpolation = json.at("interpolation").string();
  if (interpolation != "bilinear" && interpolation != "bicubic")
    throw JsonError("preprocess.interpolation: expected \"bilinear\" or \"bicubic\", found \"" +
                    interpolation + '"');
  spec.interpolation = interpolation == "bilinear" ? Interpolation::bilinear : Interpolation::bicubic;
  spec.mean = three(json.at("mean"), "preprocess.mean");
  spec.std = three(json.at("std"), "preprocess.std");
  return spec;
}

Metadata parse_metadata(std::string text) {
  const Json root = Json::parse(text);
  Metadata metadata;
  metadata.format = root.at("format").integer();
  if (metadata.format != known_format)
    throw JsonError("format " + std::to_string(metadata.format) + ", this version of swsl knows format " +
                    std::to_string(known_format) + " only; " +
                    (metadata.format > known_format ? "update swsl" : "export the model again"));
  metadata.variant = optional_string(root.at("variant"));
  const auto& architecture = root.at("architecture");
  metadata.architecture = {integers(architecture.at("layers")), architecture.at("groups").integer(),
                           architecture.at("width_per_group").integer(),
                           architecture.at("num_classes").integer()};
  metadata.preprocess = parse_spec(root.at("preprocess"));
  for (const auto& label : root.at("labels").items()) metadata.labels.push_back(label.string());
  metadata.license = optional_string(root.at("license"));
  metadata.weights_sha256 = optional_string(root.at("weights_sha256"));
  metadata.fingerprint = root.at("fingerprint").string();
  metadata.swsl_version = root.at("versions").at("swsl").string();
  metadata.torch_version = root.at("versions").at("torch").string();
  const auto& golden = root.at("golden");
  metadata.golden.shape = integers(golden.at("shape"));
  metadata.golden.features = numbers(golden.at("features"));
  metadata.golden.logits = numbers(golden.at("logits"));
  metadata.golden.weight_norms = numbers(golden.at("weight_norms"));
  metadata.golden.biases = numbers(golden.at("biases"));
  for (const auto& [dtype, value] : golden.at("tolerances").members())
    metadata.golden.tolerances[dtype] = value.number();
  metadata.json = std::move(text);

  const auto classes = std::to_string(metadata.architecture.num_classes);
  if (std::to_string(metadata.labels.size()) != classes)
    throw JsonError("labels: expected " + classes + " (architecture.num_classes), found " +
                    std::to_string(metadata.labels.size()));
  const auto one_a_class = [&](const char* name, const std::vector<double>& found) {
    if (std::to_string(found.size()) != classes)
      throw JsonError(std::string(name) + ": expected " + classes + " (architecture.num_classes), found " +
                      std::to_string(found.size()));
  };
  one_a_class("golden.logits", metadata.golden.logits);
  one_a_class("golden.weight_norms", metadata.golden.weight_norms);
  one_a_class("golden.biases", metadata.golden.biases);
  const auto& shape = metadata.golden.shape;
  const bool sound =
      shape.size() == 4 && shape[0] == 1 && shape[1] == 3 &&
      std::all_of(shape.begin() + 2, shape.end(), [](auto n) { return n >= 1 && n <= 1 << 14; });
  if (!sound) throw JsonError("golden.shape: expected 1×3×height×width, found " + describe(shape));
  return metadata;
}

bool comparable(const at::Tensor& actual, const at::Tensor& expected) {
  return actual.sizes() == expected.sizes() && actual.isfinite().all().item<bool>() &&
         expected.isfinite().all().item<bool>();
}

// 0 where nothing differs, though the scale be 0 too.
double largest_ratio(const at::Tensor& difference, const at::Tensor& scale) {
  if (difference.numel() == 0) return 0;
  return at::where(difference == 0, difference, difference / scale).max().item<double>();
}

}  // namespace

struct FrozenModel::State {
  std::string path;
  Metadata metadata;
  torch::jit::Module module;
};

Metadata FrozenModel::read_metadata(const std::string& path) {
  std::string text = read_record(path);
  try {
    return parse_metadata(std::move(text));
  } catch (const JsonError& error) {
    throw ModelError(path + ": swsl.json inside it: " + error.what());
  }
}

FrozenModel FrozenModel::load(const std::string& path) {
  auto state = std::make_shared<State>();
  state->path = path;
  state->metadata = read_metadata(path);
  try {
    state->module = on_fresh_thread([&] { return torch::jit::load(path, at::kCPU); });
  } catch (const std::exception& error) {
    throw ModelError(path + ": LibTorch cannot load it: " + first_lines(error));
  }
  for (const char* method : {"forward", "embed"})
    if (!state->module.find_method(method))
      throw ModelError(path + ": has no method " + method + "; expected a module exported by swsl");
  if (state->module.parameters().size() + state->module.buffers().size() != 0)
    throw ModelError(path + ": not frozen (it still has parameters); export it again with: swsl export");
  FrozenModel model;
  model.state_ = std::move(state);
  return model;
}

const std::string& FrozenModel::path() const { return state_->path; }
const Metadata& FrozenModel::metadata() const { return state_->metadata; }
const torch::jit::Module& FrozenModel::module() const { return state_->module; }

double relative_error(const at::Tensor& actual, const at::Tensor& expected) {
  if (!comparable(actual, expected)) return std::numeric_limits<double>::infinity();
  const auto a = actual.to(at::kCPU, at::kDouble), b = expected.to(at::kCPU, at::kDouble);
  return largest_ratio((a - b).norm(2, {-1}), b.norm(2, {-1}));
}

OutputErrors output_errors(const Golden& golden, const Outputs& actual, const Outputs& expected) {
  OutputErrors errors{relative_error(actual.features, expected.features),
                      std::numeric_limits<double>::infinity()};
  if (!comparable(actual.logits, expected.logits)) return errors;
  const auto a = actual.logits.to(at::kCPU, at::kDouble), b = expected.logits.to(at::kCPU, at::kDouble);
  const auto norms = expected.features.to(at::kCPU, at::kDouble).norm(2, {-1}, /*keepdim=*/true);
  const auto scale =
      norms * at::tensor(golden.weight_norms, at::kDouble) + at::tensor(golden.biases, at::kDouble);
  errors.logits = largest_ratio((a - b).abs(), scale);
  return errors;
}

std::string GoldenResult::text() const {
  char text[128];
  std::snprintf(text, sizeof text, "features off by %.3g and logits by %.3g, expected at most %.3g",
                errors.features, errors.logits, tolerance);
  return text;
}

at::Tensor golden_input(const std::vector<std::int64_t>& shape) {
  const auto count = std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
  auto tensor = at::empty({count}, at::kFloat);
  auto* values = tensor.data_ptr<float>();
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t hash = static_cast<std::uint32_t>(i) * 2654435761u;
    values[i] = static_cast<float>(static_cast<int>(hash >> 24) - 128) / 64.0f;
  }
  return tensor.view(shape);
}

GoldenResult FrozenModel::check_golden(const std::function<Outputs(const at::Tensor&)>& compute,
                                       at::ScalarType dtype) const {
  const auto& golden = state_->metadata.golden;
  const auto tolerance = golden.tolerances.find(dtype_name(dtype));
  if (tolerance == golden.tolerances.end())
    throw ModelError(state_->path + ": its golden check states no tolerance for " + dtype_name(dtype) +
                     "; use dtype float32");
  const auto row = [](const std::vector<double>& numbers) {
    return at::tensor(numbers, at::kDouble).unsqueeze(0);
  };
  const Outputs expected{row(golden.logits), row(golden.features)};
  return {output_errors(golden, compute(golden_input(golden.shape)), expected), tolerance->second};
}

}  // namespace swsl
