#include <cerrno>
#include <cstring>
#include <initializer_list>

#ifdef __x86_64__
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "engine/kernels/kernels.h"

namespace swsl::cpu {

#ifdef __x86_64__
namespace {

bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned bf16 = 1u << 22, tile = 1u << 24;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & bf16) != 0 && (d & tile) != 0;
}

// The kernel saves 8 KiB of tiles with a thread only for a process that has asked for it, and once is enough.
// 0, or the reason in errno's terms.
int ask_for_tiles() {
#ifdef __linux__
  constexpr int request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const int refused = syscall(SYS_arch_prctl, request_permission, tile_data) == 0 ? 0 : errno;
  return refused;
#else
  return ENOSYS;
#endif
}

}  // namespace

bool supported(Isa isa) {
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  switch (isa) {
    case Isa::portable: return true;
    case Isa::neon: return false;
    case Isa::avx2: return avx2;
    case Isa::avx512: return avx512;
    case Isa::avx512bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
    case Isa::amx: return supported(Isa::avx512bf16) && has_amx() && ask_for_tiles() == 0;
  }
  return false;
}

const KernelSet* kernels(Isa isa, bool bfloat16) {
  if (isa == Isa::amx && !bfloat16) return nullptr;  // and nobody is asked for tiles
  if (!supported(isa)) return nullptr;
  switch (isa) {
    case Isa::portable: return bfloat16 ? &portable_bfloat16_kernels() : &portable_kernels();
    case Isa::neon: return nullptr;
    case Isa::avx2: return bfloat16 ? &avx2_bfloat16_kernels() : &avx2_kernels();
    case Isa::avx512: return bfloat16 ? nullptr : &avx512_kernels();
    case Isa::avx512bf16: return bfloat16 ? &avx512bf16_kernels() : nullptr;
    case Isa::amx: return bfloat16 ? &amx_kernels() : nullptr;
  }
  return nullptr;
}

std::string why_no_tiles() {
  if (!has_amx() || ask_for_tiles() == 0) return "";
  const int refused = ask_for_tiles();
  return std::string("; without AMX, which the system refuses this process: ") +
         (refused == ENOSPC ? "a signal stack of it is too small" : std::strerror(refused));
}
#else
bool supported(Isa isa) {
#ifdef __aarch64__
  if (isa == Isa::neon) return true;
#endif
  return isa == Isa::portable;
}

const KernelSet* kernels(Isa isa, bool bfloat16) {
  if (!supported(isa)) return nullptr;
#ifdef __aarch64__
  if (isa == Isa::neon) return bfloat16 ? nullptr : &neon_kernels();
#endif
  return bfloat16 ? &portable_bfloat16_kernels() : &portable_kernels();
}

std::string why_no_tiles() { return ""; }
#endif

const KernelSet& best_kernels(bool bfloat16) {
  for (const Isa isa : {Isa::amx, Isa::avx512bf16, Isa::avx512, Isa::avx2, Isa::neon})
    if (const KernelSet* found = kernels(isa, bfloat16)) return *found;
  return *kernels(Isa::portable, bfloat16);
}

const char* name(Isa isa) {
  switch (isa) {
    case Isa::portable: return "any processor";
    case Isa::neon: return "neon";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::avx512bf16: return "avx512bf16";
    case Isa::amx: return "amx";
  }
  return "";
}

}  // namespace swsl::cpu
