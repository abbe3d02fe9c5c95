// Python objects as image sources, and Python's decoder for images that C++ does not know.
#pragma once

#include <pybind11/pybind11.h>

#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <swsl/runner.h>

#include "arrays.h"

// Of a str, with the bytes that the names of files may hold and UTF-8 may not.
std::string bytes_of(const py::handle& text);

// Paths, the bytes of image files, these with a name, or uint8 pixels H×W×3. Whatever the sources point to
// lives as long as this: it must be made and destroyed with the GIL held, and may be used without it.
class Sources {
 public:
  explicit Sources(const py::sequence& images);

  std::span<const swsl::ImageSource> span() const { return sources_; }

 private:
  void add(const py::object& image);
  void add_pixels(const Given& pixels);
  py::value_error refused(const std::string& expected, const std::string& found) const;

  std::vector<swsl::ImageSource> sources_;
  std::deque<Given> given_;
  std::deque<std::vector<std::uint8_t>> copies_;
};

// A Python function (path or buffer, name) → buffer height × width × 3, or None, as
// RunnerOptions::decode_other.
class PythonDecoder {
 public:
  explicit PythonDecoder(py::function function);

  swsl::Image operator()(const swsl::ImageSource& source) const;

 private:
  std::shared_ptr<py::function> function_;
};

// Once, when the module is loaded: no thread of ours may be in Python when that ends, or comes along through
// fork.
void guard_python();
