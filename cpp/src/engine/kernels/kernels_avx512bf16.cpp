// bfloat16 kernels for AVX512-BF16.
#include "engine/kernels/avx512bf16.h"

namespace swsl::cpu {

const KernelSet& avx512bf16_kernels() {
  static const KernelSet set = Tables<Avx512Bf16>::set(Isa::avx512bf16, true);
  return set;
}

}  // namespace swsl::cpu
