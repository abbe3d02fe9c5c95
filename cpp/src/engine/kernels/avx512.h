// Vectors of 16 sums in AVX-512, as its kernels for either type have them.
#pragma once

#ifndef __clang__
#pragma GCC diagnostic ignored "-Wuninitialized"  // false alarms inside GCC 12's own intrinsics header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "engine/kernels/kernel_templates.h"

namespace swsl::cpu {
namespace {

struct Avx512Sums {
  using Sum = __m512;
  using Permutation = __m512i;
  static constexpr int max_pixels = 14, max_vectors = 2;

  static Sum load_floats(const float* p) { return _mm512_loadu_ps(p); }
  static void store_floats(Sum sum, char* output) { _mm512_storeu_ps(output, sum); }
  static Permutation load_permutation(const std::int32_t* p) { return _mm512_loadu_si512(p); }
  static Sum splat(float value) { return _mm512_set1_ps(value); }
  static Sum maximum(Sum a, Sum b) { return _mm512_max_ps(a, b); }  // a NaN in b stays
  static Sum plus(Sum a, Sum b) { return _mm512_add_ps(a, b); }
  static Sum times(Sum a, Sum b) { return _mm512_mul_ps(a, b); }
};

}  // namespace
}  // namespace swsl::cpu
