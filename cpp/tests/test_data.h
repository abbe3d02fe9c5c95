// The files that make_test_data.py made.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

#include <ATen/ATen.h>
#include <torch/csrc/jit/api/module.h>

#include <swsl/engine.h>

inline std::string data(const std::string& name) {
  const char* folder = std::getenv("SWSL_TEST_DATA");
  if (!folder)
    throw std::runtime_error("set SWSL_TEST_DATA to the folder that make_test_data.py filled (ctest does)");
  return std::string(folder) + '/' + name;
}

inline std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// What LibTorch itself makes of a batch with the module in the file.
inline swsl::Outputs own_outputs(const swsl::FrozenModel& model, const at::Tensor& batch) {
  const c10::InferenceMode inference;
  const auto run = [&](const char* method) { return model.module().get_method(method)({batch}).toTensor(); };
  return {run("forward"), run("embed")};
}

// How far an engine's answers are from those.
inline double error_of(swsl::Engine& engine, const swsl::FrozenModel& model, const at::Tensor& batch) {
  const swsl::Outputs outputs{engine.forward(batch), engine.embed(batch)};
  return swsl::output_errors(model.metadata().golden, outputs, own_outputs(model, batch)).largest();
}
