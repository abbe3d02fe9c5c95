// bfloat16 kernels for AMX, whose processors all have AVX512-BF16 for the rest.
//
// The instructions are written out: GCC 12's own name for LDTILECFG says that it reads 8 bytes, so the rest
// of a configuration is optimised away, and its other names take no template's numbers.
#include "engine/kernels/avx512bf16.h"
#include "engine/kernels/matrix_tile.h"

namespace swsl::cpu {
namespace {

struct Amx {
  static void configure(const TileConfiguration& configuration) {
    asm volatile("ldtilecfg %0" : : "m"(configuration) : "memory");
  }
  static void release() { asm volatile("tilerelease" : : : "memory"); }
  template <int tile>
  static void load(const void* rows, std::ptrdiff_t row_step) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(row_step), "i"(tile) : "memory");
  }
  template <int tile>
  static void store(void* rows, std::ptrdiff_t row_step) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(rows), "r"(row_step), "i"(tile) : "memory");
  }
  template <int sums, int pixels, int weights>
  static void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(pixels), "i"(weights));
  }
};

}  // namespace

const KernelSet& amx_kernels() {
  static const KernelSet set = matrix_set<Amx, Avx512Bf16>(Isa::amx, avx512bf16_kernels());
  return set;
}

}  // namespace swsl::cpu
