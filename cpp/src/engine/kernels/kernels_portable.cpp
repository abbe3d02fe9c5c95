// Kernels for a processor that none of the other sets is for.
#include "engine/kernels/portable.h"

namespace swsl::cpu {

const KernelSet& portable_kernels() {
  static const KernelSet set = Tables<Portable<false>>::set(Isa::portable, false);
  return set;
}

const KernelSet& portable_bfloat16_kernels() {
  static const KernelSet set = Tables<Portable<true>>::set(Isa::portable, true);
  return set;
}

}  // namespace swsl::cpu
