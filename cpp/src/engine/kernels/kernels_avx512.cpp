// float32 kernels for AVX-512.
#pragma GCC diagnostic ignored "-Wuninitialized"  // false alarms inside GCC 12's own intrinsics header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "engine/kernels/kernel_templates.h"

namespace swsl::cpu {
namespace {

struct Avx512 {
  using Sum = __m512;
  using Weights = __m512;
  using Permutation = __m512i;
  static constexpr int max_pixels = 14, max_vectors = 2, line_vectors = 1;
  static constexpr int stem_pixel_bytes = 2 * 3 * 4;  // stride 2 over 3 interleaved channels

  static Sum load_floats(const float* p) { return _mm512_loadu_ps(p); }
  static Weights load_weights(const char* p) { return _mm512_loadu_ps(p); }
  static Weights broadcast(const char* p) { return _mm512_set1_ps(*reinterpret_cast<const float*>(p)); }
  static Sum multiply_add(Sum sum, Weights x, Weights w) { return _mm512_fmadd_ps(x, w, sum); }
  static Permutation load_permutation(const std::int32_t* p) { return _mm512_loadu_si512(p); }
  static Weights permute(const char* p, Permutation order) {
    return _mm512_permutexvar_ps(order, _mm512_loadu_ps(p));
  }
  static void prefetch_l1(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }
  static void prefetch_l2(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }
  static void prefetch_write(const char* p) { __builtin_prefetch(p, 1); }
  static Sum splat(float value) { return _mm512_set1_ps(value); }
  static Sum floor(bool relu) { return splat(relu ? 0.0f : -__builtin_inff()); }
  static Sum maximum(Sum a, Sum b) { return _mm512_max_ps(a, b); }  // a NaN in b stays
  static Sum plus(Sum a, Sum b) { return _mm512_add_ps(a, b); }
  static Sum times(Sum a, Sum b) { return _mm512_mul_ps(a, b); }
  static Sum load_line(const char* line, int) { return _mm512_loadu_ps(line); }

  template <int vectors>
  static void add(Sum (&sums)[vectors], const char* residual, std::ptrdiff_t block_step) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v)
      sums[v] = _mm512_add_ps(sums[v], _mm512_loadu_ps(residual + v * block_step));
  }
  template <int vectors>
  static void store(const Sum (&sums)[vectors], char* output, std::ptrdiff_t block_step) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) _mm512_storeu_ps(output + v * block_step, sums[v]);
  }
  template <int vectors>
  static void store_floats(const Sum (&sums)[vectors], char* output, std::ptrdiff_t block_step) {
    store<vectors>(sums, output, block_step);
  }
};

}  // namespace

const KernelSet& avx512_kernels() {
  static const KernelSet set = Tables<Avx512>::set(Isa::avx512, false);
  return set;
}

}  // namespace swsl::cpu
