#include <swsl/frozen_model.h>

#include <cmath>

#include "check.h"
#include "model/network.h"
#include "test_data.h"

using swsl::ElementType;
using swsl::FrozenModel;
using swsl::ModelError;
using swsl::Outputs;

TEST(metadata_are_what_the_exporter_wrote) {
  const auto model = FrozenModel::load(data("tiny.pt"));
  const auto& m = model.metadata();
  CHECK_EQ(m.format, 3);
  CHECK(!m.variant);
  CHECK_EQ(m.labels.size(), 10u);
  CHECK_EQ(m.labels[9], "a, \"quoted\" é");
  CHECK_EQ(m.license.value(), "none");
  CHECK(!m.weights_sha256);
  CHECK_EQ(m.fingerprint.size(), 64u);
  CHECK(m.architecture.layers == std::vector<std::int64_t>(4, 1));
  CHECK_EQ(m.architecture.groups, 4);
  CHECK_EQ(m.architecture.num_classes, 10);
  CHECK_EQ(m.preprocess.height, 64);
  CHECK_EQ(m.preprocess.crop_pct, 0.875);
  CHECK_EQ(m.preprocess.mean[0], 0.485);
  CHECK_EQ(m.preprocess.std[2], 0.225);
  CHECK(m.preprocess.interpolation == swsl::Interpolation::bilinear);
  CHECK_EQ(m.golden.tolerances.at("float32"), 1e-5);
  CHECK_EQ(FrozenModel::read_metadata(data("tiny.pt")).json, m.json);
}

TEST(the_network_is_listed_with_its_weights) {
  const auto model = FrozenModel::load(data("tiny.pt"));
  const auto& network = model.network();
  const auto& stem = network.nodes.front();
  CHECK(stem.operation == swsl::Operation::convolution && stem.inputs == std::vector<int>{0});
  CHECK_EQ(stem.in_channels, 3);
  CHECK_EQ(stem.out_channels, 64);
  CHECK(stem.window == (swsl::Window{7, 7, 2, 2, 3, 3, 1, 1}));
  CHECK(network.nodes.back().operation == swsl::Operation::linear);
  CHECK_EQ(network.output, network.values - 1);
  CHECK_EQ(network.features, network.values - 2);
  for (const auto& weights : network.stored) CHECK(weights.is_sound());
  // Of each class, the norm of its weights.
  const auto& classifier = network.nodes.back();
  for (int i = 0; i < 10; ++i) {
    double squares = 0;
    for (int j = 0; j < 2048; ++j) squares += std::pow(double{classifier.weights.get()[i * 2048 + j]}, 2);
    CHECK(std::abs(std::sqrt(squares) - model.metadata().golden.weight_norms[i]) < 1e-5);
  }
}

TEST(a_program_of_torch_export_holds_the_same_network) {
  const auto script = FrozenModel::load(data("tiny.pt")), program = FrozenModel::load(data("tiny.pt2"));
  CHECK(script.has_torchscript() && !program.has_torchscript());
  CHECK_EQ(script.metadata().fingerprint, program.metadata().fingerprint);
  const auto &expected = script.network().nodes, &found = program.network().nodes;
  CHECK_EQ(expected.size(), found.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    CHECK(found[i].operation == expected[i].operation && found[i].inputs == expected[i].inputs);
    CHECK(found[i].window == expected[i].window && found[i].groups == expected[i].groups);
  }
  const auto &weights = program.network().stored, &same = script.network().stored;
  CHECK_EQ(weights.size(), same.size());
  for (std::size_t i = 0; i < weights.size(); ++i) {
    CHECK(weights[i].name.starts_with("data/weights/"));
    CHECK(weights[i].is_sound() && weights[i].crc == same[i].crc);
  }
}

TEST(of_another_network_only_the_classes_are_known) {
  const auto architecture = FrozenModel::load(data("other_architecture.pt")).metadata().architecture;
  CHECK(architecture.layers.empty());
  CHECK_EQ(architecture.groups, 0);
  CHECK_EQ(architecture.num_classes, 10);
}

TEST(every_kind_of_wrong_file_is_named_with_what_it_is) {
  const auto load = [](const char* name) { return FrozenModel::load(data(name)); };
  CHECK_THROWS(ModelError, "nothing.pt: no such file", load("nothing.pt"));
  CHECK_THROWS(ModelError, "is a directory", load("."));
  for (const char* name : {"empty.pt", "photo.jpg", "truncated.pt"})
    CHECK_THROWS(ModelError, std::string(name) + ": no frozen module, or damaged: ", load(name));
  CHECK_THROWS(ModelError, "weights have to be exported first", load("weights.pth"));
  CHECK_THROWS(ModelError, "a TorchScript module without swsl.json", load("no_json.pt"));
  CHECK_THROWS(ModelError, "a program of torch.export without swsl.json", load("no_json.pt2"));
  CHECK_THROWS(ModelError, "bad_json.pt: swsl.json inside it: JSON: expected a key in quotes at offset 13",
               load("bad_json.pt"));
  CHECK_THROWS(ModelError, "format 9, this version of swsl knows format 3 only; update swsl",
               load("format_9.pt"));
  CHECK_THROWS(ModelError, "format 2, this version of swsl knows format 3 only; export the model again",
               load("format_2.pt"));
  CHECK_THROWS(ModelError, "\"labels\": expected 10 (architecture.num_classes), found 1",
               load("few_labels.pt"));
}

TEST(golden_input_is_the_formula) {
  const std::vector<std::int64_t> shape = {1, 3, 2, 2};
  const auto input = swsl::golden_input(shape);
  CHECK_EQ(input.size(), 12u);
  for (std::uint64_t i = 0; i < 12; ++i)
    CHECK_EQ(input[i], (static_cast<float>((i * 2654435761u & 0xffffffffu) >> 24) - 128) / 64);
}

TEST(golden_check_tells_right_from_wrong) {
  const auto model = FrozenModel::load(data("tiny.pt"));
  const auto with = [&](float logits, float features) {
    return [&, logits, features](const swsl::Batch& batch) {
      CHECK((batch.shape == std::array<std::int64_t, 4>{1, 3, 64, 64}));
      Outputs outputs = model.metadata().golden.outputs;
      for (float& number : outputs.logits) number *= logits;
      for (float& number : outputs.features) number *= features;
      return outputs;
    };
  };
  CHECK(model.check_golden(with(1, 1), ElementType::float32).passed());
  for (const auto& wrong : {with(1.01f, 1), with(1, 1.001f)}) {
    CHECK(!model.check_golden(wrong, ElementType::float32).passed());
    CHECK(model.check_golden(wrong, ElementType::bfloat16).passed());
  }
  const auto text = model.check_golden(with(1, 1.001f), ElementType::float32).text();
  CHECK(text.starts_with("features off by 0.001 and logits by ") &&
        text.ends_with(", expected at most 1e-05"));
  CHECK(!model.check_golden([](const swsl::Batch&) { return Outputs{}; }, ElementType::float32).passed());
  CHECK(!model.check_golden(with(NAN, 1), ElementType::bfloat16).passed());
}

TEST(an_error_is_of_the_sums_that_made_the_answer) {
  using Row = std::vector<float>;
  CHECK_EQ(swsl::relative_error(Row{3, -3}, Row{3, -4}), 0.2);
  CHECK_EQ(swsl::relative_error(Row{0, 0}, Row{0, 0}), 0);
  CHECK(std::isinf(swsl::relative_error(Row{1, 1}, Row{0, 0})));
  CHECK(std::isinf(swsl::relative_error(Row{1}, Row{1, 2})));
  CHECK(std::isinf(swsl::relative_error(Row{NAN}, Row{1})));
  swsl::Golden golden;
  golden.weight_norms = {5, 2};
  golden.biases = {0, 1};
  const Outputs expected{{0, 1e-9f}, {3, 4}}, actual{{0, 5.5f}, {3, 4}};  // the scale is 25 and 11
  const auto errors = swsl::output_errors(golden, actual, expected);
  CHECK_EQ(errors.features, 0);
  CHECK(std::abs(errors.logits - 0.5) < 1e-6);
}
