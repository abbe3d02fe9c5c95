// The twin of the tile instructions by its definition, the kernel's treatment of threads, and on a processor
// with AMX the twin against the instructions. The kernel itself is compared with nested loops in
// test_cpu_engine.cpp.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "engine/tile_twin.h"
#include "threads/thread_pool.h"

using namespace swsl::cpu;

namespace {

struct Operands {
  std::uint16_t left[16][32] = {}, right[16][32] = {};
  float sums[16][16] = {};

  void set_right(int row, int column, float value) {  // of a matrix of 32 rows, which lie in pairs
    right[row / 2][2 * column + row % 2] = to_bfloat16(value);
  }
  void multiply() {
    TileTwin::configure(TileConfiguration{});
    TileTwin::load<0>(sums, sizeof sums[0]);
    TileTwin::load<1>(left, sizeof left[0]);
    TileTwin::load<2>(right, sizeof right[0]);
    TileTwin::multiply<0, 1, 2>();
    TileTwin::store<0>(sums, sizeof sums[0]);
    TileTwin::release();
  }
};

// A tile of 32 pixels with what `bits` gives as inputs and weights; the sums as float32.
template <class Bits>
std::vector<float> sums_of(const KernelSet& kernels, Bits bits, int blocks, int pixels) {
  std::vector<std::uint16_t> input(32 * matrix_pixels * blocks), weights(32 * 32 * blocks);
  for (auto& each : input) each = bits();
  for (auto& each : weights) each = bits();
  std::vector<std::ptrdiff_t> offsets;
  for (int block = 0; block < blocks; ++block) offsets.push_back(block * matrix_pixels * line_bytes);
  std::vector<std::int32_t> lines(matrix_pixels);
  for (int pixel = 0; pixel < matrix_pixels; ++pixel) lines[pixel] = pixel;
  std::vector<float> bias(32, 0.5f), sums(2 * matrix_pixels * 16);
  TileArgs args{};
  args.input = reinterpret_cast<const char*>(input.data());
  args.block_offsets = offsets.data();
  args.blocks = blocks;
  args.steps = line_steps;
  args.weights = reinterpret_cast<const char*>(weights.data());
  args.bias = bias.data();
  args.output = reinterpret_cast<char*>(sums.data());
  args.output_block_step = matrix_pixels * line_bytes;
  args.output_lines = lines.data();
  args.float_output = true;
  args.pixels = pixels;
  args.pixel_bytes = line_bytes;
  const InUse in_use(kernels);
  kernels.matrix_tile(args);
  return sums;
}

}  // namespace

TEST(a_product_of_matrices) {
  Operands o;
  std::mt19937 random(1);
  double expected[16][16];
  for (auto& row : o.left)
    for (auto& each : row) each = to_bfloat16(static_cast<float>(static_cast<int>(random() % 17) - 8));
  float right[32][16];
  for (int row = 0; row < 32; ++row)
    for (int column = 0; column < 16; ++column)
      o.set_right(row, column, right[row][column] = static_cast<float>(static_cast<int>(random() % 17) - 8));
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 16; ++column) {
      expected[row][column] = o.sums[row][column] = static_cast<float>(row - column);
      for (int k = 0; k < 32; ++k) expected[row][column] += from_bfloat16(o.left[row][k]) * right[k][column];
    }
  o.multiply();
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 16; ++column) CHECK_EQ(o.sums[row][column], expected[row][column]);
}

TEST(first_and_second_numbers_are_summed_apart) {
  Operands o;
  // Added in order the 1 would be lost in the first sum; apart, the large ones cancel before.
  const float left[] = {0x1p30f, 1, -0x1p30f};
  for (int k = 0; k < 3; ++k) {
    o.left[0][k] = to_bfloat16(left[k]);
    o.set_right(k, 0, 1);
  }
  o.multiply();
  CHECK_EQ(o.sums[0][0], 1.0f);
}

TEST(denormals_are_zero) {
  Operands o;
  o.left[0][0] = 0x0001;  // a denormal
  o.set_right(0, 0, 0x1p120f);
  o.left[1][0] = to_bfloat16(0x1p-100f);  // times 2^-40: a denormal product
  o.set_right(0, 1, 0x1p-40f);
  o.sums[2][0] = FLT_MIN / 2;
  o.multiply();
  CHECK_EQ(o.sums[0][0], 0.0f);
  CHECK_EQ(o.sums[1][1], 0.0f);
  CHECK_EQ(o.sums[2][0], 0.0f);
}

TEST(what_is_not_finite_stays_so) {
  Operands o;
  o.left[0][0] = to_bfloat16(std::numeric_limits<float>::infinity());
  o.set_right(0, 0, -1);  // and 0 in the other columns
  o.multiply();
  CHECK_EQ(o.sums[0][0], -std::numeric_limits<float>::infinity());
  CHECK(std::isnan(o.sums[0][1]));
  CHECK_EQ(o.sums[1][0], 0.0f);
}

TEST(the_twin_refuses_what_the_processor_faults_on) {
  float row[16] = {};
  CHECK_THROWS(std::logic_error, "no configuration", TileTwin::load<0>(row, 0));
  TileConfiguration other;
  other.palette = 2;
  CHECK_THROWS(std::logic_error, "palette", TileTwin::configure(other));
  other = {};
  other.rows[3] = 17;
  CHECK_THROWS(std::logic_error, "tile 3", TileTwin::configure(other));
  other = {};
  other.rows[8] = 1;
  CHECK_THROWS(std::logic_error, "tile 8", TileTwin::configure(other));
  other = {};
  other.rows[1] = 8;
  TileTwin::configure(other);
  TileTwin::load<0>(row, 0);
  TileTwin::load<1>(row, 0);
  CHECK_THROWS(std::logic_error, "before it is loaded", (TileTwin::multiply<0, 1, 2>()));
  TileTwin::load<2>(row, 0);
  CHECK_THROWS(std::logic_error, "do not fit", (TileTwin::multiply<0, 1, 2>()));
  TileTwin::release();
  CHECK_EQ(TileTwin::threads_configured.load(), 0);
}

TEST(every_thread_releases_its_tiles) {
  ThreadPool threads(3);
  threads.run([&](int) {
    const InUse in_use(twin_kernels());
    threads.barrier();
    CHECK_EQ(TileTwin::threads_configured.load(), 3);
    threads.barrier();
  });
  CHECK_EQ(TileTwin::threads_configured.load(), 0);
}

TEST(pixels_beyond_the_last_are_not_written) {
  for (const int pixels : {1, 15, 16, 17, 31, 32}) {
    const auto sums = sums_of(twin_kernels(), [] { return to_bfloat16(1); }, 2, pixels);
    for (int vector = 0; vector < 2; ++vector)
      for (int pixel = 0; pixel < matrix_pixels; ++pixel)
        for (int channel = 0; channel < 16; ++channel)
          CHECK_EQ(sums[(vector * matrix_pixels + pixel) * 16 + channel], pixel < pixels ? 64.5f : 0.0f);
  }
}

TEST(the_peak_loop_counts_what_it_does) {
  const std::vector<float> factors(32, 1.0f);
  const InUse in_use(twin_kernels());
  CHECK_EQ(twin_kernels().peak_loop(factors.data(), 3), 3.0 * 4 * 16 * 16 * 32 * 2);
}

TEST(the_twin_is_the_instruction) {
  const KernelSet* amx = kernels(Isa::amx, true);
  if (amx == nullptr) return;  // nothing to compare with
  for (const bool any_bits : {false, true})
    for (unsigned trial = 0; trial < 50; ++trial) {
      const auto bits = [any_bits, random = std::mt19937(trial)]() mutable {
        if (any_bits) return static_cast<std::uint16_t>(random());
        return to_bfloat16(std::normal_distribution<float>()(random));
      };
      const int blocks = static_cast<int>(trial % 4) + 1, pixels = static_cast<int>(trial % 32) + 1;
      const auto expected = sums_of(twin_kernels(), bits, blocks, pixels),
                 found = sums_of(*amx, bits, blocks, pixels);
      for (std::size_t i = 0; i < found.size(); ++i) {
        if (!std::isfinite(expected[i]))
          CHECK(!std::isfinite(found[i]));
        else
          CHECK(std::fabs(found[i] - expected[i]) <= 1e-4f + 1e-5f * std::fabs(expected[i]));
      }
    }
}
