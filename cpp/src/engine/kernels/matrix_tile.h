// Tile kernel for processors that multiply matrices (AMX). `T` are the tile instructions (amx.h, or their
// twin in the tests), `I` the vectors of the epilogue.
//
// Of the eight tile registers, of 16 rows of 64 bytes, four hold sums: 2 × 16 pixels by 2 × 16 channels. A
// block of the sum is one line of every pixel, so a register of pixels is 16 lines at equal distances, and a
// register of weights the panel's 16 steps as they lie for the other kernels: nothing is packed anew. Four
// loads feed four products of 16,384 operations. Sums start as the bias, loaded with a distance of 0; at the
// end they go through 4 KiB of L1 to the epilogue (residual, ReLU, conversion), which is most of the time
// where the sum is short.
//
// Limits: registers always have 16 rows. Rows beyond `pixels` read whatever follows, up to 31 pixels, and
// their sums go nowhere; blocks of fewer channels have zero weights. Denormal inputs and sums count as 0.
#pragma once

#include "engine/kernels/kernel_templates.h"

namespace swsl::cpu {

// What LDTILECFG reads.
struct alignas(64) TileConfiguration {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfiguration) == 64);

namespace {

inline constexpr int tile_rows = 16;

template <class T, class I>
void compute_matrix_tile(const TileArgs& args) {
  const bool both = args.pixels > tile_rows;
  for (int p = 0; p < args.pixels; ++p) {
    if (args.output_lines[p] < 0) continue;
    if (args.residual != nullptr) prefetch_l1(args.residual + args.residual_lines[p] * line_bytes);
    prefetch_write(args.output + args.output_lines[p] * line_bytes);
  }
  T::template load<0>(args.bias, 0);
  T::template load<1>(args.bias + vector_width, 0);
  if (both) {
    T::template load<2>(args.bias, 0);
    T::template load<3>(args.bias + vector_width, 0);
  }
  const char* weights = args.weights;
  const char* prefetch = args.prefetch;
  for (int b = 0; b < args.blocks; ++b) {
    const char* input = args.input + args.block_offsets[b];
    if (prefetch != nullptr) {
      for (int j = 0; j < args.prefetch_lines; ++j) prefetch_l2(prefetch + j * line_bytes);
      prefetch += args.prefetch_lines * line_bytes;
    }
    T::template load<4>(input, args.pixel_bytes);
    T::template load<6>(weights, 2 * line_bytes);
    T::template multiply<0, 4, 6>();
    T::template load<7>(weights + line_bytes, 2 * line_bytes);
    T::template multiply<1, 4, 7>();
    if (both) {
      T::template load<5>(input + tile_rows * args.pixel_bytes, args.pixel_bytes);
      T::template multiply<2, 5, 6>();
      T::template multiply<3, 5, 7>();
    }
    weights += 2 * line_steps * line_bytes;
  }
  alignas(64) float sums[matrix_pixels][2 * vector_width];
  constexpr std::ptrdiff_t sum_bytes = sizeof sums[0];
  T::template store<0>(sums[0], sum_bytes);
  T::template store<1>(sums[0] + vector_width, sum_bytes);
  if (both) {
    T::template store<2>(sums[tile_rows], sum_bytes);
    T::template store<3>(sums[tile_rows] + vector_width, sum_bytes);
  }
  const auto floor = floor_of<I>(args.relu);
  for (int p = 0; p < args.pixels; ++p) {
    if (args.output_lines[p] < 0) continue;
    typename I::Sum pixel[2] = {I::load_floats(sums[p]), I::load_floats(sums[p] + vector_width)};
    finish_pixel<I>(args, p, floor, pixel);
  }
}

template <class T>
double run_matrix_peak_loop(const float* factors, int rounds) {
  T::template load<0>(factors, 0);
  T::template load<1>(factors, 0);
  T::template load<2>(factors, 0);
  T::template load<3>(factors, 0);
  T::template load<4>(factors, 0);
  T::template load<6>(factors, 0);
  for (int i = 0; i < rounds; ++i) {
    T::template multiply<0, 4, 6>();
    T::template multiply<1, 4, 6>();
    T::template multiply<2, 4, 6>();
    T::template multiply<3, 4, 6>();
  }
  return 2.0 * 4 * tile_rows * vector_width * 2 * line_steps * rounds;
}

// The set for these instructions: the other set's pools, and its numbers of everything but tiles.
template <class T, class I>
KernelSet matrix_set(Isa isa, const KernelSet& other) {
  KernelSet set = other;
  set.isa = isa;
  set.max_pixels = matrix_pixels;
  set.max_vectors = 2;
  set.tile = nullptr;
  set.grouped_row = nullptr;
  set.peak_loop = run_matrix_peak_loop<T>;
  set.matrix_tile = compute_matrix_tile<T, I>;
  set.configure = [] { T::configure(TileConfiguration{}); };
  set.release = T::release;
  return set;
}

}  // namespace
}  // namespace swsl::cpu
