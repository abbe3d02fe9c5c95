// Vectors of 16 in AVX512-BF16, for the kernels: pairs of products summed in float32. A line has 32 channels,
// two vectors of 16 sums; a tile of two vectors writes whole lines, a tile of one vector half of each.
#pragma once

#pragma GCC diagnostic ignored "-Wuninitialized"  // false alarms inside GCC 12's own intrinsics header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "engine/kernels/kernel_templates.h"

namespace swsl::cpu {
namespace {

struct Avx512Bf16 {
  using Sum = __m512;
  using Weights = __m512i;
  using Permutation = __m512i;
  static constexpr int max_pixels = 14, max_vectors = 2, line_vectors = 2;
  static constexpr int stem_pixel_bytes = 2 * 3 * 2;  // stride 2 over 3 interleaved channels

  static Sum load_floats(const float* p) { return _mm512_loadu_ps(p); }
  static Weights load_weights(const char* p) { return _mm512_loadu_si512(p); }
  static Weights broadcast(const char* p) {
    int pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static Sum multiply_add(Sum sum, Weights x, Weights w) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
  }
  static Permutation load_permutation(const std::int32_t* p) { return _mm512_loadu_si512(p); }
  static Weights permute(const char* p, Permutation order) {
    return _mm512_permutexvar_epi32(order, _mm512_loadu_si512(p));
  }
  static void prefetch_l1(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }
  static void prefetch_l2(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }
  static void prefetch_write(const char* p) { __builtin_prefetch(p, 1); }
  static Sum splat(float value) { return _mm512_set1_ps(value); }
  static Sum floor(bool relu) { return splat(relu ? 0.0f : -__builtin_inff()); }
  static Sum maximum(Sum a, Sum b) { return _mm512_max_ps(a, b); }  // a NaN in b stays
  static Sum plus(Sum a, Sum b) { return _mm512_add_ps(a, b); }
  static Sum times(Sum a, Sum b) { return _mm512_mul_ps(a, b); }
  static Sum widen(__m256i half) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static Sum load_line(const char* line, int v) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(line + v * 32)));
  }

  template <int vectors>
  static void add(Sum (&sums)[vectors], const char* residual, std::ptrdiff_t) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sums[v] = _mm512_add_ps(sums[v], load_line(residual, v));
  }
  template <int vectors>
  static void store(const Sum (&sums)[vectors], char* output, std::ptrdiff_t) {
    if constexpr (vectors == 2)
      _mm512_storeu_si512(output, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(sums[1], sums[0])));
    else
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(output),
                          reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(sums[0])));
  }
  template <int vectors>
  static void store_floats(const Sum (&sums)[vectors], char* output, std::ptrdiff_t block_step) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) _mm512_storeu_ps(output + v * block_step, sums[v]);
  }
};

}  // namespace
}  // namespace swsl::cpu
