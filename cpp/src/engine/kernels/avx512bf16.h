// Vectors of 16 in AVX512-BF16, for the kernels: pairs of products summed in float32. A line has 32 channels,
// two vectors of 16 sums; a tile of two vectors writes whole lines, a tile of one vector half of each.
#pragma once

#include "engine/kernels/avx512.h"

namespace swsl::cpu {
namespace {

struct Avx512Bf16 : Avx512Sums {
  using Weights = __m512i;
  static constexpr int line_vectors = 2;

  static Weights load_weights(const char* p) { return _mm512_loadu_si512(p); }
  static Weights broadcast(const char* p) {
    int pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static Sum multiply_add(Sum sum, Weights x, Weights w) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
  }
  static Weights permute(const char* p, Permutation order) {
    return _mm512_permutexvar_epi32(order, _mm512_loadu_si512(p));
  }
  static Sum load_line(const char* line, int v) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line + v * 32));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static void store_line(const Sum (&sums)[2], char* output) {
    _mm512_storeu_si512(output, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(sums[1], sums[0])));
  }
  static void store_line(const Sum (&sums)[1], char* output) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(output),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(sums[0])));
  }
};

}  // namespace
}  // namespace swsl::cpu
