// bfloat16 for processors that have AVX2 but no instructions for it: numbers are widened on their way into
// float32 arithmetic.
#include "engine/kernels/portable.h"

namespace swsl::cpu {

const KernelSet& avx2_bfloat16_kernels() {
  static const KernelSet set = Tables<Portable<true>>::set(Isa::avx2, true);
  return set;
}

}  // namespace swsl::cpu
