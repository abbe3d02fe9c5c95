// The files that make_test_data.py made.
#pragma once

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

#include <ATen/ATen.h>

inline std::string data(const std::string& name) {
  const char* folder = std::getenv("SWSL_TEST_DATA");
  if (!folder) throw std::runtime_error("set SWSL_TEST_DATA to the folder that make_test_data.py filled (ctest does)");
  return std::string(folder) + '/' + name;
}

inline std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline at::Tensor floats(const std::string& name, at::IntArrayRef shape) {
  const std::string bytes = contents(data(name));
  auto tensor = at::empty(shape, at::kFloat);
  if (tensor.nbytes() != bytes.size()) throw std::runtime_error(name + ": unexpected size");
  std::copy(bytes.begin(), bytes.end(), static_cast<char*>(tensor.data_ptr()));
  return tensor;
}
