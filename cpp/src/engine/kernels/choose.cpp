#include "engine/kernels/kernels.h"

namespace swsl::cpu {

bool supported(Isa isa) {
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  switch (isa) {
    case Isa::avx2: return avx2;
    case Isa::avx512: return avx512;
    case Isa::avx512bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  }
  return false;
}

const KernelSet* float32_kernels() {
  if (supported(Isa::avx512)) return &avx512_kernels();
  if (supported(Isa::avx2)) return &avx2_kernels();
  return nullptr;
}

const KernelSet* bfloat16_kernels() { return supported(Isa::avx512bf16) ? &avx512bf16_kernels() : nullptr; }

const char* name(Isa isa) {
  switch (isa) {
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::avx512bf16: return "avx512bf16";
  }
  return "";
}

}  // namespace swsl::cpu
