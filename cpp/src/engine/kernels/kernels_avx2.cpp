// float32 kernels for AVX2 with FMA: a vector of 16 sums is two registers, a tile 6 pixels × 1 vector (12
// sums, 2 weights and 1 broadcast of the 16 registers).
#include <immintrin.h>

#include "engine/kernels/kernel_templates.h"

namespace swsl::cpu {
namespace {

struct Pair {
  __m256 low, high;
};

struct Avx2 {
  using Sum = Pair;
  using Weights = Pair;
  struct Permutation {
    __m256i low, high;
  };
  static constexpr int max_pixels = 6, max_vectors = 1, line_vectors = 1;

  static Sum load_floats(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static Weights load_weights(const char* p) { return load_floats(reinterpret_cast<const float*>(p)); }
  static __m256 broadcast(const char* p) { return _mm256_broadcast_ss(reinterpret_cast<const float*>(p)); }
  static Sum multiply_add(const Sum& sum, __m256 x, const Weights& w) {
    return {_mm256_fmadd_ps(x, w.low, sum.low), _mm256_fmadd_ps(x, w.high, sum.high)};
  }
  static Sum multiply_add(const Sum& sum, const Weights& x, const Weights& w) {
    return {_mm256_fmadd_ps(x.low, w.low, sum.low), _mm256_fmadd_ps(x.high, w.high, sum.high)};
  }
  static Permutation load_permutation(const std::int32_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
  }
  // Groups of at most 8 channels never cross the halves of a line, and the permutation only sees the low
  // three bits.
  static Weights permute(const char* p, const Permutation& order) {
    const auto line = load_weights(p);
    return {_mm256_permutevar8x32_ps(line.low, order.low), _mm256_permutevar8x32_ps(line.high, order.high)};
  }
  static Sum splat(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
  static Sum maximum(const Sum& a, const Sum& b) {  // a NaN in b stays
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
  }
  static Sum plus(const Sum& a, const Sum& b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
  }
  static Sum times(const Sum& a, const Sum& b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
  }
  static Sum load_line(const char* line, int) { return load_weights(line); }
  static void store_floats(const Sum& sum, char* output) {
    auto* floats = reinterpret_cast<float*>(output);
    _mm256_storeu_ps(floats, sum.low);
    _mm256_storeu_ps(floats + 8, sum.high);
  }
};

}  // namespace

const KernelSet& avx2_kernels() {
  static const KernelSet set = Tables<Avx2>::set(Isa::avx2, false);
  return set;
}

}  // namespace swsl::cpu
