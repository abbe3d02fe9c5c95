// The kernels, written once for every instruction set. A file per instruction set defines `I`, the operations
// on vectors of 16, and includes this. Everything is in an anonymous namespace, so that no linker can take
// one file's code for another's.
//
// Tile kernel: the sums of a tile (rows × columns pixels by 1 or 2 vectors of 16 channels) stay in registers
// for the whole sum over input channels and taps. A step loads 1 or 2 vectors of weights, broadcasts one step
// of every pixel and multiplies: with AVX-512, 14 pixels × 2 vectors are 28 sums, 2 weights and 1 broadcast
// of the 32 registers, and 28 multiply-adds for 16 loads. Weights are read once, in order, so the hardware
// prefetcher follows them; pixels of a block are neighbouring lines that stay in L1. The epilogue (residual,
// ReLU) works on the registers and writes whole lines. Tiles of two rows serve narrow images (7×7: 14 pixels
// as 2×7).
//
// Grouped row kernel: a vector of 16 output channels covers 16/g groups of g channels. For each of the g
// input channels of a group, one permutation spreads that channel of every group over the group's lanes; the
// result serves the three taps of a kernel row. So no multiply is wasted, whatever g.
#pragma once

#include "engine/kernels/kernels.h"

namespace swsl::cpu {
namespace {

[[gnu::always_inline]] inline void prefetch_l1(const char* p) { __builtin_prefetch(p, 0, 3); }
[[gnu::always_inline]] inline void prefetch_l2(const char* p) { __builtin_prefetch(p, 0, 2); }
[[gnu::always_inline]] inline void prefetch_write(const char* p) { __builtin_prefetch(p, 1); }

// As a line, or half of one, of the set's type, or as float32.
template <class I, int vectors>
[[gnu::always_inline]] inline void store(const typename I::Sum (&sums)[vectors], char* output,
                                         std::ptrdiff_t block_step, bool floats) {
  if constexpr (I::line_vectors > 1) {
    if (!floats) return I::store_line(sums, output);
  }
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) I::store_floats(sums[v], output + v * block_step);
}

template <class I>
[[gnu::always_inline]] inline typename I::Sum floor_of(bool relu) {
  return I::splat(relu ? 0.0f : -__builtin_inff());
}

// A pixel's sums, `at` in the tile, through residual and ReLU to the output.
template <class I, int vectors>
[[gnu::always_inline]] inline void finish_pixel(const TileArgs& args, int at, const typename I::Sum& floor,
                                                typename I::Sum (&sums)[vectors]) {
  if (args.residual != nullptr) {
    const char* residual = args.residual + args.residual_lines[at] * line_bytes;
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      const int block = v / I::line_vectors;
      sums[v] =
          I::plus(sums[v], I::load_line(residual + block * args.residual_block_step, v % I::line_vectors));
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) sums[v] = I::maximum(floor, sums[v]);
  store<I>(sums, args.output + args.output_lines[at] * line_bytes, args.output_block_step, args.float_output);
}

// `input` and `second`: the current step of the first pixel in the tile's two rows.
template <class I, int rows, int columns, int vectors, int pixel_bytes>
[[gnu::always_inline]] inline void multiply_step(typename I::Sum (&sums)[rows * columns][vectors],
                                                 const char* input, const char* second, const char* weights) {
  typename I::Weights w[vectors];
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) w[v] = I::load_weights(weights + v * line_bytes);
#pragma GCC unroll 64
  for (int p = 0; p < rows * columns; ++p) {
    const auto x = I::broadcast((p < columns ? input : second) + (p % columns) * pixel_bytes);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sums[p][v] = I::multiply_add(sums[p][v], x, w[v]);
  }
}

template <class I, int rows, int columns, int vectors, int pixel_bytes>
void compute_tile(const TileArgs& args) {
  typename I::Sum sums[rows * columns][vectors];
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    const auto bias = I::load_floats(args.bias + v * vector_width);
#pragma GCC unroll 64
    for (int p = 0; p < rows * columns; ++p) sums[p][v] = bias;
  }
  // What the epilogue touches comes from beyond L1; asked for now, it is there in time.
#pragma GCC unroll 64
  for (int p = 0; p < rows * columns; ++p) {
    const int at = (p / columns) * args.line_row_step + p % columns;
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v += I::line_vectors) {
      if (args.residual != nullptr)
        prefetch_l1(args.residual + args.residual_lines[at] * line_bytes + v * args.residual_block_step);
      prefetch_write(args.output + args.output_lines[at] * line_bytes + v * args.output_block_step);
    }
  }
  constexpr auto step = multiply_step<I, rows, columns, vectors, pixel_bytes>;
  const char* weights = args.weights;
  const char* prefetch = args.prefetch;
  for (int b = 0; b < args.blocks; ++b) {
    const char* input = args.input + args.block_offsets[b];
    const char* second = input + args.row_step;
    if (prefetch != nullptr) {
      for (int j = 0; j < args.prefetch_lines; ++j) prefetch_l2(prefetch + j * line_bytes);
      prefetch += args.prefetch_lines * line_bytes;
    }
    int k = 0;
    for (; k + 4 <= args.steps; k += 4) {
      // Where pixels overlap (the stem), GCC would keep loads of one round for the next, and spill the sums
      // for it.
      asm("" : "+r"(input), "+r"(second));
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        step(sums, input + j * step_bytes, second + j * step_bytes, weights + j * vectors * line_bytes);
      input += 4 * step_bytes;
      second += 4 * step_bytes;
      weights += 4 * vectors * line_bytes;
    }
    for (; k < args.steps; ++k) {
      step(sums, input, second, weights);
      input += step_bytes;
      second += step_bytes;
      weights += vectors * line_bytes;
    }
  }
  const auto floor = floor_of<I>(args.relu);
#pragma GCC unroll 64
  for (int p = 0; p < rows * columns; ++p)
    finish_pixel<I>(args, (p / columns) * args.line_row_step + p % columns, floor, sums[p]);
}

template <class I, int columns, int stride>
void compute_grouped_row(const GroupedRowArgs& args) {
  constexpr int input_columns = (columns - 1) * stride + 3;
  typename I::Sum sums[columns][1];
  const auto bias = I::load_floats(args.bias);
#pragma GCC unroll 64
  for (int p = 0; p < columns; ++p) sums[p][0] = bias;
  const char* weights = args.weights;
  const char* row = args.input;
  for (int y = 0; y < 3; ++y) {
    for (int k = 0; k < args.steps; ++k) {
      const auto permutation = I::load_permutation(args.permutations + k * vector_width);
      const auto w0 = I::load_weights(weights);
      const auto w1 = I::load_weights(weights + line_bytes);
      const auto w2 = I::load_weights(weights + 2 * line_bytes);
#pragma GCC unroll 64
      for (int x = 0; x < input_columns; ++x) {
        const auto spread = I::permute(row + x * line_bytes, permutation);
        if (x % stride == 0 && x / stride < columns)
          sums[x / stride][0] = I::multiply_add(sums[x / stride][0], spread, w0);
        if (x >= 1 && (x - 1) % stride == 0 && (x - 1) / stride < columns)
          sums[(x - 1) / stride][0] = I::multiply_add(sums[(x - 1) / stride][0], spread, w1);
        if (x >= 2 && (x - 2) % stride == 0 && (x - 2) / stride < columns)
          sums[(x - 2) / stride][0] = I::multiply_add(sums[(x - 2) / stride][0], spread, w2);
      }
      weights += 3 * line_bytes;
    }
    row += args.row_step;
  }
  const auto floor = floor_of<I>(args.relu);
#pragma GCC unroll 64
  for (int p = 0; p < columns; ++p) {
    sums[p][0] = I::maximum(floor, sums[p][0]);
    store<I>(sums[p], args.output + p * line_bytes, 0, false);
  }
}

template <class I, bool maximum>
void pool_window(const PoolArgs& args) {
  typename I::Sum sums[I::line_vectors];
#pragma GCC unroll 2
  for (auto& sum : sums) sum = I::splat(maximum ? -__builtin_inff() : 0.0f);
  for (int y = 0; y < args.rows; ++y)
    for (int x = 0; x < args.columns; ++x) {
      const char* line = args.input + y * args.row_step + x * line_bytes;
#pragma GCC unroll 2
      for (int v = 0; v < I::line_vectors; ++v) {
        const auto value = I::load_line(line, v);
        sums[v] = maximum ? I::maximum(sums[v], value) : I::plus(sums[v], value);
      }
    }
  if (!maximum) {
#pragma GCC unroll 2
    for (auto& sum : sums) sum = I::times(sum, I::splat(args.scale));
  }
  store<I>(sums, args.output, line_bytes, false);
}

template <class I>
double run_peak_loop(const float* factors, int rounds) {
  constexpr int count = I::max_pixels * I::max_vectors;
  typename I::Sum sums[count];
  const auto a = I::load_weights(reinterpret_cast<const char*>(factors));
  const auto b = I::load_weights(reinterpret_cast<const char*>(factors + vector_width));
  // Sums that start alike would be computed once for all.
#pragma GCC unroll 32
  for (int i = 0; i < count; ++i) sums[i] = I::splat(factors[i]);
  for (int i = 0; i < rounds; ++i) {
#pragma GCC unroll 32
    for (auto& sum : sums) sum = I::multiply_add(sum, a, b);
  }
  auto total = sums[0];
#pragma GCC unroll 32
  for (auto& sum : sums) total = I::plus(total, sum);
  char line[line_bytes];
  I::store_floats(total, line);
  asm volatile("" : : "m"(line));  // used, as far as the compiler knows
  return 2.0 * vector_width * I::line_vectors * count * rounds;
}

// From run-time shapes to the instances.
template <int... values>
struct Columns {};
template <int n, int... values>
struct CountTo : CountTo<n - 1, n, values...> {};
template <int... values>
struct CountTo<0, values...> {
  using Type = Columns<values...>;
};

template <class I>
struct Tables {
  template <int rows, int vectors, int pixel_bytes, int... columns>
  static TileKernel pick_tile(int wanted, Columns<columns...>) {
    static constexpr TileKernel kernels[] = {compute_tile<I, rows, columns, vectors, pixel_bytes>...};
    return wanted >= 1 && wanted <= static_cast<int>(sizeof...(columns)) ? kernels[wanted - 1] : nullptr;
  }
  template <int rows, int vectors>
  static TileKernel pick_pixels(int columns, int pixel_bytes) {
    using All = typename CountTo<I::max_pixels / rows>::Type;
    if (pixel_bytes == line_bytes) return pick_tile<rows, vectors, line_bytes>(columns, All{});
    if (pixel_bytes == 2 * line_bytes) return pick_tile<rows, vectors, 2 * line_bytes>(columns, All{});
    constexpr int stem_pixel_bytes = 2 * 3 * line_bytes / (I::line_vectors * vector_width);  // of 3 channels
    if (pixel_bytes == stem_pixel_bytes) return pick_tile<rows, vectors, stem_pixel_bytes>(columns, All{});
    return columns == 1 ? pick_tile<rows, vectors, line_bytes>(1, All{}) : nullptr;
  }
  static TileKernel tile(int rows, int columns, int vectors, int pixel_bytes) {
    if (vectors > I::max_vectors) return nullptr;
    if (rows == 1 && vectors == 1) return pick_pixels<1, 1>(columns, pixel_bytes);
    if (rows == 2 && vectors == 1) return pick_pixels<2, 1>(columns, pixel_bytes);
    if constexpr (I::max_vectors == 2) {
      if (rows == 1 && vectors == 2) return pick_pixels<1, 2>(columns, pixel_bytes);
      if (rows == 2 && vectors == 2) return pick_pixels<2, 2>(columns, pixel_bytes);
    }
    return nullptr;
  }
  template <int stride, int... columns>
  static GroupedRowKernel pick_row(int wanted, Columns<columns...>) {
    static constexpr GroupedRowKernel kernels[] = {compute_grouped_row<I, columns, stride>...};
    return wanted >= 1 && wanted <= static_cast<int>(sizeof...(columns)) ? kernels[wanted - 1] : nullptr;
  }
  static GroupedRowKernel grouped_row(int columns, int stride) {
    if (stride == 1) return pick_row<1>(columns, typename CountTo<2 * I::max_pixels>::Type{});
    if (stride == 2) return pick_row<2>(columns, typename CountTo<I::max_pixels>::Type{});
    return nullptr;
  }
  static KernelSet set(Isa isa, bool bfloat16) {
    return {isa,
            bfloat16,
            I::max_pixels,
            I::max_vectors,
            tile,
            grouped_row,
            pool_window<I, true>,
            pool_window<I, false>,
            run_peak_loop<I>};
  }
};

}  // namespace
}  // namespace swsl::cpu
