#include <swsl/frozen_model.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "model/archive.h"
#include "model/json.h"
#include "model/network.h"
#include "model/utf8.h"

namespace swsl {
namespace {

constexpr std::int64_t known_format = 3;
constexpr const char* metadata_entry = "extra/swsl.json";
constexpr const char* script_entry = "constants.pkl";
constexpr const char* program_entry = "archive_format";
constexpr std::size_t longest_metadata = std::size_t{4} << 20;

std::string describe(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (const auto n : shape) text += (text.empty() ? "" : "×") + std::to_string(n);
  return text;
}

std::shared_ptr<const Archive> open_archive(const std::string& path) {
  std::error_code ignored;
  const auto status = std::filesystem::status(path, ignored);
  if (std::filesystem::is_directory(status))
    throw ModelError(path + ": is a directory, expected a frozen module (.pt or .pt2)");
  if (!std::filesystem::exists(status))
    throw ModelError(path + ": no such file; expected a frozen module (make one with: swsl export)");
  try {
    return std::make_shared<const Archive>(path);
  } catch (const std::system_error& error) {
    throw ModelError(path + ": cannot be read (" + error.code().message() + "); check its permissions");
  } catch (const ArchiveError& error) {
    throw ModelError(
        path + ": no frozen module, or damaged: " + error.what() +
        "; expected a file as swsl export writes it. Weights saved by torch.save have to be exported first");
  }
}

std::string read_metadata_text(const std::string& path, const Archive& archive) {
  const auto* entry = archive.find(metadata_entry);
  if (entry == nullptr) {
    std::string found =
        "a zip file, but neither TorchScript nor a program; weights have to be exported first";
    for (const auto& [name, kind] : {std::pair(program_entry, "a program of torch.export"),
                                     std::pair(script_entry, "a TorchScript module")})
      if (archive.find(name) != nullptr)
        found = std::string(kind) + " without swsl.json inside: not exported by swsl";
    throw ModelError(path + ": " + found + " (make a frozen module with: swsl export)");
  }
  if (entry->bytes.size() > longest_metadata)
    throw ModelError(path + ": swsl.json inside it has " + std::to_string(entry->bytes.size()) +
                     " bytes, expected at most " + std::to_string(longest_metadata));
  const auto bytes = archive.read(metadata_entry);
  std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (!detail::is_utf8(text)) throw ArchiveError("swsl.json is no UTF-8");
  return text;
}

constexpr std::size_t most_features = 1 << 16;

std::string shortest(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
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
  for (const auto& [key, value] : json.members())
    if (!std::set<std::string_view>{"input_size", "crop_pct", "interpolation", "mean", "std"}.contains(key))
      value.refuse("no such key", "one");
  const auto size = integers(json.at("input_size"));
  constexpr std::int64_t longest = 1024;  // so that the golden check of a faulty file costs little
  if (size.size() != 2 || *std::min_element(size.begin(), size.end()) < 1 ||
      *std::max_element(size.begin(), size.end()) > longest)
    throw JsonError("preprocess.input_size: expected [height, width], each from 1 to 1024, found " +
                    describe(size));
  spec.height = static_cast<int>(size[0]);
  spec.width = static_cast<int>(size[1]);
  spec.crop_pct = json.at("crop_pct").number();
  if (!(spec.crop_pct > 0 && spec.crop_pct <= 1))
    json.at("crop_pct").refuse("above 0 and at most 1", shortest(spec.crop_pct));
  const auto& interpolation = json.at("interpolation").string();
  if (interpolation != "bilinear" && interpolation != "bicubic")
    throw JsonError("preprocess.interpolation: expected \"bilinear\" or \"bicubic\", found \"" +
                    interpolation + '"');
  spec.interpolation = interpolation == "bilinear" ? Interpolation::bilinear : Interpolation::bicubic;
  spec.mean = three(json.at("mean"), "preprocess.mean");
  spec.std = three(json.at("std"), "preprocess.std");
  for (const double std : spec.std)
    if (!(std > 0)) json.at("std").refuse("numbers above 0", shortest(std));
  return spec;
}

std::vector<float> floats(const Json& array) {
  std::vector<float> out;
  for (const double number : numbers(array)) out.push_back(static_cast<float>(number));
  return out;
}

void parse_golden(const Json& json, Metadata& metadata) {
  Golden& golden = metadata.golden;
  const auto& spec = metadata.preprocess;
  golden.shape = integers(json.at("shape"));
  if (golden.shape != std::vector<std::int64_t>{1, 3, spec.height, spec.width})
    json.at("shape").refuse("that of an image, " + describe({1, 3, spec.height, spec.width}),
                            describe(golden.shape));
  golden.outputs = {floats(json.at("logits")), floats(json.at("features"))};
  golden.weight_norms = numbers(json.at("weight_norms"));
  golden.biases = numbers(json.at("biases"));
  const auto check = [&](const char* name, const auto& values, std::size_t count, double least) {
    if (values.size() != count)
      json.at(name).refuse(std::to_string(count) + " numbers", std::to_string(values.size()));
    for (const auto value : values)
      if (!std::isfinite(static_cast<float>(value)) || value < least)
        json.at(name).refuse("finite numbers", std::to_string(value));
  };
  const auto classes = static_cast<std::size_t>(metadata.architecture.num_classes);
  check("logits", golden.outputs.logits, classes, -HUGE_VAL);
  check("features", golden.outputs.features,
        std::clamp<std::size_t>(golden.outputs.features.size(), 1, most_features), -HUGE_VAL);
  check("weight_norms", golden.weight_norms, classes, 0);
  check("biases", golden.biases, classes, 0);
  const auto& tolerances = json.at("tolerances");
  for (const auto& [dtype, largest] : largest_tolerances()) {
    const double value = tolerances.at(dtype).number();
    if (!(value > 0 && value <= largest))
      tolerances.at(dtype).refuse("at most " + shortest(largest), shortest(value));
    golden.tolerances[dtype] = value;
  }
}

void parse_metadata(const Json& root, Metadata& metadata) {
  metadata.format = root.at("format").integer();
  if (metadata.format != known_format)
    throw JsonError("format " + std::to_string(metadata.format) + ", this version of swsl knows format " +
                    std::to_string(known_format) + " only; " +
                    (metadata.format > known_format ? "update swsl" : "export the model again"));
  metadata.variant = optional_string(root.at("variant"));
  const auto& architecture = root.at("architecture");
  const auto size = [](const Json& value) {
    const auto number = value.integer();
    if (number < 1 || number > 1 << 16) value.refuse("an integer from 1 to 65536", std::to_string(number));
    return number;
  };
  if (const auto& layers = architecture.at("layers"); !layers.is_null()) {  // else it is no ResNeXt of ours
    for (const auto& layer : layers.items()) metadata.architecture.layers.push_back(size(layer));
    if (metadata.architecture.layers.size() != 4)
      layers.refuse("4 integers", std::to_string(metadata.architecture.layers.size()));
  }
  const auto optional_size = [&](const Json& value) { return value.is_null() ? 0 : size(value); };
  metadata.architecture.groups = optional_size(architecture.at("groups"));
  metadata.architecture.width_per_group = optional_size(architecture.at("width_per_group"));
  metadata.architecture.num_classes = size(architecture.at("num_classes"));
  metadata.preprocess = parse_spec(root.at("preprocess"));
  for (const auto& label : root.at("labels").items()) metadata.labels.push_back(label.string());
  if (metadata.labels.empty() ||
      std::cmp_not_equal(metadata.labels.size(), metadata.architecture.num_classes))
    root.at("labels").refuse(
        std::to_string(metadata.architecture.num_classes) + " (architecture.num_classes)",
        std::to_string(metadata.labels.size()));
  metadata.license = optional_string(root.at("license"));
  metadata.weights_sha256 = optional_string(root.at("weights_sha256"));
  metadata.fingerprint = root.at("fingerprint").string();
  metadata.swsl_version = root.at("versions").at("swsl").string();
  metadata.torch_version = root.at("versions").at("torch").string();
  parse_golden(root.at("golden"), metadata);
}

}  // namespace

struct FrozenModel::State {
  std::string path;
  Metadata metadata;
  Network network;
};

FrozenModel FrozenModel::load(const std::string& path) {
  auto state = std::make_shared<State>();
  state->path = path;
  const auto archive = open_archive(path);
  try {
    state->metadata.json = read_metadata_text(path, *archive);
    const Json root = Json::parse(state->metadata.json);
    parse_metadata(root, state->metadata);
    const Preprocessor judge(state->metadata.preprocess, Isa::scalar);  // of the numbers
    state->network = read_network(root.at("network"), archive);
  } catch (const JsonError& error) {
    throw ModelError(path + ": swsl.json inside it: " + error.what());
  } catch (const std::invalid_argument& error) {
    throw ModelError(path + ": swsl.json inside it: preprocess: " + error.what());
  } catch (const ArchiveError& error) {
    throw ModelError(path + ": damaged: " + error.what() + "; get it again, or export it again");
  }
  FrozenModel model;
  model.state_ = std::move(state);
  return model;
}

const std::string& FrozenModel::path() const { return state_->path; }
const Metadata& FrozenModel::metadata() const { return state_->metadata; }
const Network& FrozenModel::network() const { return state_->network; }
bool FrozenModel::has_torchscript() const { return state_->network.archive->find(script_entry) != nullptr; }

GoldenResult FrozenModel::check_golden(const std::function<Outputs(const Batch&)>& compute,
                                       ElementType dtype) const {
  const auto& golden = state_->metadata.golden;
  const auto tolerance = golden.tolerances.find(dtype_name(dtype));
  if (tolerance == golden.tolerances.end())
    throw ModelError(state_->path + ": its golden check states no tolerance for " + dtype_name(dtype) +
                     "; use dtype float32");
  const auto input = golden_input(golden.shape);
  const auto batch = Batch::contiguous(input.data(), {1, 3, golden.shape[2], golden.shape[3]});
  return {output_errors(golden, compute(batch), golden.outputs), tolerance->second};
}

void check_classifier(const FrozenModel& model) {
  const Node& last = model.network().nodes.back();
  const Golden& golden = model.metadata().golden;
  if (last.operation != Operation::linear || std::cmp_not_equal(last.out_channels, golden.biases.size()))
    return;
  for (int i = 0; i < last.out_channels; ++i) {
    double squares = 0;
    for (int j = 0; j < last.in_channels; ++j) {
      const double weight = last.weights.get()[std::ptrdiff_t{i} * last.in_channels + j];
      squares += weight * weight;
    }
    const double bias = last.bias ? std::abs(double{last.bias.get()[i]}) : 0;
    const auto differ = [](double found, double stated) {
      return !(std::abs(found - stated) <= 1e-3 * found);
    };
    if (differ(std::sqrt(squares), golden.weight_norms[i]) || differ(bias, golden.biases[i]))
      throw ModelError(model.path() +
                       ": swsl.json inside it: golden.weight_norms and golden.biases of class " +
                       std::to_string(i) + " are not those of its classifier; export it again");
  }
}

void check_torchscript(const FrozenModel& model, const std::string& why) {
  if (!model.has_torchscript())
    throw ModelError(model.path() + ": " + why +
                     ", and LibTorch does not run torch.export's program, which this .pt2 holds; export the "
                     "model to a .pt, whose TorchScript it runs: swsl export … -o model.pt");
}

void check_stored(const FrozenModel& model, const Network::Stored& weights) {
  if (!weights.is_sound())
    throw ModelError(model.path() + ": damaged: the CRC of its entry " + weights.name +
                     " is not the one that the archive states; get it again, or export it again");
}

std::string dtype_name(ElementType dtype) {
  switch (dtype) {
    case ElementType::float32: return "float32";
    case ElementType::bfloat16: return "bfloat16";
    case ElementType::float16: break;
  }
  return "float16";
}

}  // namespace swsl
