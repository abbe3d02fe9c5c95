// Numbers on their way between Python and C++, without copies where that is possible.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include <swsl/batch.h>

namespace py = pybind11;

// What Python gets: a vector with a shape, row-major, through the buffer protocol.
template <typename Number>
struct Array {
  std::vector<Number,
              std::conditional_t<std::is_same_v<Number, float>, swsl::Unset<float>, std::allocator<Number>>>
      numbers;
  std::vector<py::ssize_t> shape;
};

template <typename Number>
void bind_array(py::module_& m, const char* name) {
  py::class_<Array<Number>>(m, name, py::buffer_protocol()).def_buffer([](Array<Number>& array) {
    return py::buffer_info(array.numbers.data(), array.shape,
                           py::detail::c_strides(array.shape, sizeof(Number)));
  });
}

// What Python gives: the memory of an object that has the buffer protocol (arrays, memoryviews) or DLPack's
// (tensors), held as long as this lives. Made and destroyed with the GIL held.
class Given {
 public:
  enum class Kind { unsigned_integer, floating, bfloat16, other };

  // Nothing where the object has neither.
  static std::optional<Given> from(const py::object& object);

  const void* data = nullptr;
  Kind kind = Kind::other;
  int bytes = 0;  // of an element
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;  // in elements
  bool on_cpu = true;

  std::string text() const;  // "float32 2 3 224 224"

 private:
  std::shared_ptr<void> held_;
};

// A batch N×3×H×W of float64, float32, float16 or bfloat16 in the CPU's memory. Throws std::invalid_argument.
class GivenBatch {
 public:
  explicit GivenBatch(const py::object& object);

  const swsl::Batch& batch() const { return batch_; }

 private:
  std::optional<Given> given_;
  std::vector<float> converted_;  // from float64
  swsl::Batch batch_;
};
