// float32 kernels for aarch64, whose processors all have NEON: a vector of 16 sums is four registers, a tile
// 6 pixels × 1 vector (24 sums, 4 weights and 1 broadcast of the 32 registers).
#include <arm_neon.h>

#include "engine/kernels/kernel_templates.h"

namespace swsl::cpu {
namespace {

struct Quad {
  float32x4_t a, b, c, d;
};

struct Neon {
  using Sum = Quad;
  using Weights = Quad;
  struct Permutation {
    uint8x16_t a, b, c, d;
  };
  static constexpr int max_pixels = 6, max_vectors = 1, line_vectors = 1;

  static Sum load_floats(const float* p) {
    return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
  }
  static Weights load_weights(const char* p) { return load_floats(reinterpret_cast<const float*>(p)); }
  // Multiplied as a lane of a vector.
  static float broadcast(const char* p) { return *reinterpret_cast<const float*>(p); }
  static Sum multiply_add(const Sum& sum, float x, const Weights& w) {
    return {vfmaq_n_f32(sum.a, w.a, x), vfmaq_n_f32(sum.b, w.b, x), vfmaq_n_f32(sum.c, w.c, x),
            vfmaq_n_f32(sum.d, w.d, x)};
  }
  static Sum multiply_add(const Sum& sum, const Weights& x, const Weights& w) {
    return {vfmaq_f32(sum.a, x.a, w.a), vfmaq_f32(sum.b, x.b, w.b), vfmaq_f32(sum.c, x.c, w.c),
            vfmaq_f32(sum.d, x.d, w.d)};
  }
  // Groups of at most 8 channels never cross the halves of a line, and two registers make a table for one.
  static uint8x16_t bytes_of(const std::int32_t* p) {
    const uint32x4_t step = vandq_u32(vreinterpretq_u32_s32(vld1q_s32(p)), vdupq_n_u32(7));
    return vreinterpretq_u8_u32(vmlaq_n_u32(vdupq_n_u32(0x03020100), step, 0x04040404));
  }
  static Permutation load_permutation(const std::int32_t* p) {
    return {bytes_of(p), bytes_of(p + 4), bytes_of(p + 8), bytes_of(p + 12)};
  }
  static float32x4_t pick(uint8x16x2_t half, uint8x16_t order) {
    return vreinterpretq_f32_u8(vqtbl2q_u8(half, order));
  }
  static Weights permute(const char* p, const Permutation& order) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(p);
    const uint8x16x2_t low = vld1q_u8_x2(bytes), high = vld1q_u8_x2(bytes + 32);
    return {pick(low, order.a), pick(low, order.b), pick(high, order.c), pick(high, order.d)};
  }
  static Sum splat(float value) {
    const float32x4_t all = vdupq_n_f32(value);
    return {all, all, all, all};
  }
  static Sum maximum(const Sum& x, const Sum& y) {  // a NaN stays
    return {vmaxq_f32(x.a, y.a), vmaxq_f32(x.b, y.b), vmaxq_f32(x.c, y.c), vmaxq_f32(x.d, y.d)};
  }
  static Sum plus(const Sum& x, const Sum& y) {
    return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b), vaddq_f32(x.c, y.c), vaddq_f32(x.d, y.d)};
  }
  static Sum times(const Sum& x, const Sum& y) {
    return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b), vmulq_f32(x.c, y.c), vmulq_f32(x.d, y.d)};
  }
  static Sum load_line(const char* line, int) { return load_weights(line); }
  static void store_floats(const Sum& sum, char* output) {
    auto* floats = reinterpret_cast<float*>(output);
    vst1q_f32(floats, sum.a);
    vst1q_f32(floats + 4, sum.b);
    vst1q_f32(floats + 8, sum.c);
    vst1q_f32(floats + 12, sum.d);
  }
};

}  // namespace

const KernelSet& neon_kernels() {
  static const KernelSet set = Tables<Neon>::set(Isa::neon, false);
  return set;
}

}  // namespace swsl::cpu
