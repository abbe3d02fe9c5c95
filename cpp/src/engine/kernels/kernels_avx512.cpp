// float32 kernels for AVX-512.
#include "engine/kernels/avx512.h"

namespace swsl::cpu {
namespace {

struct Avx512 : Avx512Sums {
  using Weights = __m512;
  static constexpr int line_vectors = 1;

  static Weights load_weights(const char* p) { return _mm512_loadu_ps(p); }
  static Weights broadcast(const char* p) { return _mm512_set1_ps(*reinterpret_cast<const float*>(p)); }
  static Sum multiply_add(Sum sum, Weights x, Weights w) { return _mm512_fmadd_ps(x, w, sum); }
  static Weights permute(const char* p, Permutation order) {
    return _mm512_permutexvar_ps(order, _mm512_loadu_ps(p));
  }
  static Sum load_line(const char* line, int) { return _mm512_loadu_ps(line); }
};

}  // namespace

const KernelSet& avx512_kernels() {
  static const KernelSet set = Tables<Avx512>::set(Isa::avx512, false);
  return set;
}

}  // namespace swsl::cpu
