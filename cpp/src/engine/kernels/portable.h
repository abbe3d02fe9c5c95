// Vectors of 16 as the compiler has them on any processor, for the kernel templates: what the kernels for an
// instruction set do by its instructions, in C++. Included by a file for each set of compiler options.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "engine/kernels/kernel_templates.h"

namespace swsl::cpu {
namespace {

template <bool bfloat16>
struct Portable {
  using Floats [[gnu::vector_size(64)]] = float;
  using Words [[gnu::vector_size(64)]] = std::uint32_t;
  using Halves [[gnu::vector_size(32)]] = std::uint16_t;
  using Sum = Floats;
  using Weights = std::conditional_t<bfloat16, Words, Floats>;
  using Permutation = const std::int32_t*;
// Sums that fit beside a vector of weights in 32 registers of 16 bytes, 16 of 32, or 16 of 16.
#if defined(__aarch64__)
  static constexpr int max_pixels = 6;
#elif defined(__AVX2__)
  static constexpr int max_pixels = 4;
#else
  static constexpr int max_pixels = 2;
#endif
  static constexpr int max_vectors = 1, line_vectors = bfloat16 ? 2 : 1;

  template <typename Vector>
  static Vector load(const void* p) {
    Vector vector;
    std::memcpy(&vector, p, sizeof vector);
    return vector;
  }
  static Sum load_floats(const float* p) { return load<Floats>(p); }
  static Weights load_weights(const char* p) { return load<Weights>(p); }
  static Weights broadcast(const char* p) {
    std::conditional_t<bfloat16, std::uint32_t, float> step;
    std::memcpy(&step, p, sizeof step);
    return step - Weights{};
  }
  // A step of bfloat16 is two numbers, each the upper half of a float.
  static Floats low(const Words& pairs) { return reinterpret_cast<Floats>(pairs << 16); }
  static Floats high(const Words& pairs) { return reinterpret_cast<Floats>(pairs & 0xffff0000u); }
  static Sum multiply_add(const Sum& sum, const Weights& x, const Weights& w) {
    if constexpr (bfloat16)
      return sum + high(x) * high(w) + low(x) * low(w);
    else
      return sum + x * w;
  }
  static Permutation load_permutation(const std::int32_t* p) { return p; }
  static Weights permute(const char* p, Permutation order) {
    std::uint32_t lanes[16], line[16];
    std::memcpy(line, p, sizeof line);
    for (int i = 0; i < 16; ++i) lanes[i] = line[order[i]];
    return load<Weights>(lanes);
  }
  static Sum splat(float value) { return value - Floats{}; }
  static Sum maximum(const Sum& a, const Sum& b) { return a > b ? a : b; }  // a NaN in b stays
  static Sum plus(const Sum& a, const Sum& b) { return a + b; }
  static Sum times(const Sum& a, const Sum& b) { return a * b; }
  static Sum load_line(const char* line, int v) {
    if constexpr (bfloat16)
      return low(__builtin_convertvector(load<Halves>(line + v * 32), Words));
    else
      return load<Floats>(line);
  }
  // To the nearest, ties to even; NaN stays NaN.
  static Halves narrow(const Sum& sum) {
    const auto bits = reinterpret_cast<Words>(sum);
    const Words rounded = bits + 0x7fffu + (bits >> 16 & 1u);
    return __builtin_convertvector((sum == sum ? rounded : bits | 0x400000u) >> 16, Halves);
  }
  template <int vectors>
  static void store_line(const Sum (&sums)[vectors], char* output) {
    for (int v = 0; v < vectors; ++v) {
      const Halves halves = narrow(sums[v]);
      std::memcpy(output + v * 32, &halves, sizeof halves);
    }
  }
  static void store_floats(const Sum& sum, char* output) { std::memcpy(output, &sum, sizeof sum); }
};

}  // namespace
}  // namespace swsl::cpu
