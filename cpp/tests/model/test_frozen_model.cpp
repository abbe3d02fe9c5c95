#include <swsl/frozen_model.h>

#include <ATen/ATen.h>

#include "check.h"
#include "test_data.h"

using swsl::FrozenModel;
using swsl::ModelError;
using swsl::Outputs;

TEST(metadata_are_what_the_exporter_wrote) {
  const auto model = FrozenModel::load(data("tiny.pt"));
  const auto& m = model.metadata();
  CHECK_EQ(m.format, 2);
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

TEST(every_kind_of_wrong_file_is_named_with_what_it_is) {
  const auto load = [](const char* name) { return FrozenModel::load(data(name)); };
  CHECK_THROWS(ModelError, "nothing.pt: no such file", load("nothing.pt"));
  CHECK_THROWS(ModelError, "is a directory", load("."));
  CHECK_THROWS(ModelError, "empty.pt: not a TorchScript archive", load("empty.pt"));
  CHECK_THROWS(ModelError, "photo.jpg: not a TorchScript archive", load("photo.jpg"));
  CHECK_THROWS(ModelError, "truncated.pt: damaged or incomplete archive", load("truncated.pt"));
  CHECK_THROWS(ModelError, "weights have to be exported first", load("weights.pth"));
  CHECK_THROWS(ModelError, "a TorchScript module without swsl.json", load("no_json.pt"));
  CHECK_THROWS(ModelError, "bad_json.pt: swsl.json inside it: JSON: expected a key in quotes at offset 13",
               load("bad_json.pt"));
  CHECK_THROWS(ModelError, "format 9, this version of swsl knows format 2 only; update swsl",
               load("format_9.pt"));
  CHECK_THROWS(ModelError, "labels: expected 10 (architecture.num_classes), found 1", load("few_labels.pt"));
  CHECK_THROWS(ModelError, "unfrozen.pt: ", load("unfrozen.pt"));
}

TEST(golden_input_is_the_formula) {
  const auto tensor = swsl::golden_input({1, 3, 2, 2}).flatten();
  for (std::int64_t i = 0; i < 12; ++i)
    CHECK_EQ(
        tensor[i].item<float>(),
        (static_cast<float>((static_cast<std::uint64_t>(i) * 2654435761u & 0xffffffffu) >> 24) - 128) / 64);
}

TEST(golden_check_tells_right_from_wrong) {
  const auto model = FrozenModel::load(data("tiny.pt"));
  const auto right = [&](const at::Tensor& batch) { return own_outputs(model, batch); };
  CHECK(model.check_golden(right, at::kFloat).passed());
  const auto with = [&](double logits, double features) {
    return [&, logits, features](const at::Tensor& batch) {
      const auto outputs = right(batch);
      return Outputs{outputs.logits * logits, outputs.features * features};
    };
  };
  for (const auto& wrong : {with(1.01, 1), with(1, 1.001)}) {
    CHECK(!model.check_golden(wrong, at::kFloat).passed());
    CHECK(model.check_golden(wrong, at::kBFloat16).passed());
  }
  const auto text = model.check_golden(with(1, 1.001), at::kFloat).text();
  CHECK(text.starts_with("features off by 0.001 and logits by ") &&
        text.ends_with(", expected at most 1e-05"));
  const auto features = at::ones({1, 2048});
  CHECK(
      !model.check_golden([&](const at::Tensor&) { return Outputs{at::zeros({1, 3}), features}; }, at::kFloat)
           .passed());
  CHECK(!model
             .check_golden([&](const at::Tensor&) { return Outputs{at::full({1, 10}, NAN), features}; },
                           at::kBFloat16)
             .passed());
}

TEST(an_error_is_of_the_sums_that_made_the_answer) {
  const auto error = [](const at::Tensor& actual, const at::Tensor& expected) {
    return swsl::relative_error(actual, expected);
  };
  CHECK_EQ(
      error(at::tensor({3.0, -3.0, 6.0, 8.0}).view({2, 2}), at::tensor({3.0, -4.0, 6.0, 8.0}).view({2, 2})),
      0.2);
  CHECK_EQ(error(at::zeros({2, 2}), at::zeros({2, 2})), 0);
  CHECK(std::isinf(error(at::ones({1, 2}), at::zeros({1, 2}))));
  CHECK(std::isinf(error(at::tensor({1.0}), at::tensor({1.0, 2.0}))));
  CHECK(std::isinf(error(at::tensor({NAN}), at::tensor({1.0}))));
  swsl::Golden golden;
  golden.weight_norms = {5, 2};
  golden.biases = {0, 1};
  const Outputs expected{at::tensor({0.0, 1e-9}).unsqueeze(0), at::tensor({3.0, 4.0}).unsqueeze(0)};
  const Outputs actual{at::tensor({0.0, 5.5}).unsqueeze(0), expected.features};  // the scale is 25 and 11
  const auto errors = swsl::output_errors(golden, actual, expected);
  CHECK_EQ(errors.features, 0);
  CHECK(std::abs(errors.logits - 0.5) < 1e-6);
}
