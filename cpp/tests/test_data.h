// The files that make_test_data.py made.
#pragma once

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

inline std::string data(const std::string& name) {
  const char* folder = std::getenv("SWSL_TEST_DATA");
  if (!folder) throw std::runtime_error("set SWSL_TEST_DATA to the folder that make_test_data.py filled (ctest does)");
  return std::string(folder) + '/' + name;
}

inline std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
