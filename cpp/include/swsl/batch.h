// A batch of images as an engine takes it: numbers that belong to somebody else.
//
//   std::vector<float> pixels(2 * 3 * 224 * 224);
//   const auto batch = swsl::Batch::contiguous(pixels.data(), {2, 3, 224, 224});
//
// Plain structs; nothing here throws.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include <swsl/api.h>

namespace swsl {

// 16-bit elements are the float32 values rounded to nearest even, as `tensor.to(dtype)` rounds.
enum class ElementType { float32, bfloat16, float16 };

// N×3×height×width, N ≥ 0.
struct Batch {
  const void* data = nullptr;
  ElementType type = ElementType::float32;
  std::array<std::int64_t, 4> shape{};
  std::array<std::int64_t, 4> strides{};  // in elements
  int cuda = -1;                          // the number of the CUDA device whose memory it is; -1: the CPU's

  static Batch contiguous(const float* data, const std::array<std::int64_t, 4>& shape) {
    return {data,
            ElementType::float32,
            shape,
            {shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1}};
  }
};

// Numbers that are not set to zero before they are written: of a batch of pixels, that would take half as
// long as making them.
template <typename Number>
struct Unset : std::allocator<Number> {
  template <typename Other>
  struct rebind {
    using other = Unset<Other>;
  };
  template <typename Other>
  void construct(Other* place) {
    ::new (static_cast<void*>(place)) Other;
  }
  template <typename Other, typename... Arguments>
  void construct(Other* place, Arguments&&... arguments) {
    ::new (static_cast<void*>(place)) Other(std::forward<Arguments>(arguments)...);
  }
};
using Floats = std::vector<float, Unset<float>>;

}  // namespace swsl
