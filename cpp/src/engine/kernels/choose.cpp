#include <initializer_list>

#include "engine/kernels/kernels.h"

namespace swsl::cpu {

#ifdef __x86_64__
bool supported(Isa isa) {
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  switch (isa) {
    case Isa::portable: return true;
    case Isa::avx2: return avx2;
    case Isa::avx512: return avx512;
    case Isa::avx512bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  }
  return false;
}

const KernelSet* kernels(Isa isa, bool bfloat16) {
  if (!supported(isa)) return nullptr;
  switch (isa) {
    case Isa::portable: return bfloat16 ? &portable_bfloat16_kernels() : &portable_kernels();
    case Isa::avx2: return bfloat16 ? &avx2_bfloat16_kernels() : &avx2_kernels();
    case Isa::avx512: return bfloat16 ? nullptr : &avx512_kernels();
    case Isa::avx512bf16: return bfloat16 ? &avx512bf16_kernels() : nullptr;
  }
  return nullptr;
}
#else
bool supported(Isa isa) { return isa == Isa::portable; }

const KernelSet* kernels(Isa isa, bool bfloat16) {
  if (!supported(isa)) return nullptr;
  return bfloat16 ? &portable_bfloat16_kernels() : &portable_kernels();
}
#endif

const KernelSet& best_kernels(bool bfloat16) {
  for (const Isa isa : {Isa::avx512bf16, Isa::avx512, Isa::avx2})
    if (const KernelSet* found = kernels(isa, bfloat16)) return *found;
  return *kernels(Isa::portable, bfloat16);
}

const char* name(Isa isa) {
  switch (isa) {
    case Isa::portable: return "any processor";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::avx512bf16: return "avx512bf16";
  }
  return "";
}

}  // namespace swsl::cpu
