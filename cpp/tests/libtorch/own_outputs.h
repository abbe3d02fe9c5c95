// What LibTorch itself makes of a batch, to compare engines with.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/jit/api/module.h>

#include <swsl/libtorch/tensors.h>

#include "test_data.h"

inline std::vector<float> numbers(const at::Tensor& row) {
  const auto values = row.to(at::kCPU, at::kFloat).contiguous();
  return {values.data_ptr<float>(), values.data_ptr<float>() + values.numel()};
}

// The largest error of a row of the engine's answers.
inline double error_of(swsl::Engine& engine, const swsl::FrozenModel& model, const at::Tensor& batch) {
  const c10::InferenceMode inference;
  const auto module = swsl::libtorch::load_module(model);
  const auto run = [&](const char* method) { return module.get_method(method)({batch}).toTensor(); };
  const auto logits = swsl::libtorch::forward(engine, batch), features = swsl::libtorch::embed(engine, batch);
  const auto expected_logits = run("forward"), expected_features = run("embed");
  double largest = 0;
  for (std::int64_t i = 0; i < batch.size(0); ++i) {
    const swsl::Outputs expected{numbers(expected_logits[i]), numbers(expected_features[i])};
    const auto errors =
        swsl::output_errors(model.metadata().golden, {numbers(logits[i]), numbers(features[i])}, expected);
    largest = std::max(largest, errors.largest());
  }
  return largest;
}
