// NEON, which every aarch64 processor has.
//
// It multiplies 32-bit integers as fast as halves of them, so the coefficients stay whole and the sums are
// those of scalar.cpp, four at a time. Four source rows are narrowed at once, one output at a time: a table
// lookup spreads a pixel's three bytes over the lanes of a vector, whose fourth is idle. Only the narrowed
// rows that the current output row needs are kept, so they stay in the first-level cache. Normalised values
// come from the tables, for a division of four takes longer than four loads.
#include <arm_neon.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "resample/kernels/arithmetic.h"
#include "resample/kernels/scalar.h"

namespace swsl::resample {
namespace {

constexpr int rows_per_group = 4;
constexpr int taps_per_step = 4;
constexpr int load_bytes = 16;

int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// To 8 bits; sums below zero and above 255 are clipped on the way.
uint8x8_t to_pixels(int32x4_t low, int32x4_t high) {
  const int16x8_t shorts =
      vcombine_s16(vmovn_s32(vshrq_n_s32(low, fraction_bits)), vmovn_s32(vshrq_n_s32(high, fraction_bits)));
  return vqmovun_s16(shorts);
}

// Narrows four rows of at least 16 bytes. A pixel of `lines` is written as four bytes, of which the last is
// idle.
void narrow(const std::uint8_t* const rows[rows_per_group], int row_bytes, const AxisView& columns,
            std::uint8_t* const lines[rows_per_group]) {
  // Bytes of the loaded 16 for each lane's lowest byte; the table has none for the others, nor beyond 16.
  alignas(16) static constexpr std::uint8_t picks[taps_per_step][16] = {
      {0, 128, 128, 128, 1, 128, 128, 128, 2, 128, 128, 128, 128, 128, 128, 128},
      {3, 128, 128, 128, 4, 128, 128, 128, 5, 128, 128, 128, 128, 128, 128, 128},
      {6, 128, 128, 128, 7, 128, 128, 128, 8, 128, 128, 128, 128, 128, 128, 128},
      {9, 128, 128, 128, 10, 128, 128, 128, 11, 128, 128, 128, 128, 128, 128, 128}};
  const uint8x16_t order[taps_per_step] = {vld1q_u8(picks[0]), vld1q_u8(picks[1]), vld1q_u8(picks[2]),
                                           vld1q_u8(picks[3])};
  for (int x = 0; x < columns.count; ++x) {
    const std::int32_t* coefficients = columns.coefficients + std::ptrdiff_t{x} * columns.stride;
    const int at = 3 * (columns.start[x] - columns.begin);
    int32x4_t sums[rows_per_group];
    for (auto& sum : sums) sum = vdupq_n_s32(rounding);
    for (int t = 0; t < columns.taps[x]; t += taps_per_step) {
      const int32x4_t k = vld1q_s32(coefficients + t);
      // What would reach behind the row is loaded from its end, and picked from further on.
      const int from = std::min(at + 3 * t, row_bytes - load_bytes);
      const uint8x16_t shift = vdupq_n_u8(static_cast<std::uint8_t>(at + 3 * t - from));
      for (int r = 0; r < rows_per_group; ++r) {
        const uint8x16_t bytes = vld1q_u8(rows[r] + from);
        const auto pixel = [&](int tap) {
          return vreinterpretq_s32_u8(vqtbl1q_u8(bytes, vaddq_u8(order[tap], shift)));
        };
        sums[r] = vmlaq_laneq_s32(sums[r], pixel(0), k, 0);
        sums[r] = vmlaq_laneq_s32(sums[r], pixel(1), k, 1);
        sums[r] = vmlaq_laneq_s32(sums[r], pixel(2), k, 2);
        sums[r] = vmlaq_laneq_s32(sums[r], pixel(3), k, 3);
      }
    }
    for (int r = 0; r < rows_per_group; r += 2) {
      const uint32x2_t pixels = vreinterpret_u32_u8(to_pixels(sums[r], sums[r + 1]));
      const std::uint32_t even = vget_lane_u32(pixels, 0), odd = vget_lane_u32(pixels, 1);
      std::memcpy(lines[r] + 3 * x, &even, sizeof even);
      std::memcpy(lines[r + 1] + 3 * x, &odd, sizeof odd);
    }
  }
}

// 16 values of an output row; `source(t)` points to those under tap t.
template <typename Source>
uint8x16_t filter_rows(Source source, const std::int32_t* coefficients, int taps) {
  int32x4_t sums[4];
  for (auto& sum : sums) sum = vdupq_n_s32(rounding);
  for (int t = 0; t < taps; ++t) {
    const std::int32_t k = coefficients[t];
    const uint8x16_t bytes = vld1q_u8(source(t));
    const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_high_u8(bytes);
    sums[0] = vmlaq_n_s32(sums[0], vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), k);
    sums[1] = vmlaq_n_s32(sums[1], vreinterpretq_s32_u32(vmovl_high_u16(low)), k);
    sums[2] = vmlaq_n_s32(sums[2], vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))), k);
    sums[3] = vmlaq_n_s32(sums[3], vreinterpretq_s32_u32(vmovl_high_u16(high)), k);
  }
  return vcombine_u8(to_pixels(sums[0], sums[1]), to_pixels(sums[2], sums[3]));
}

}  // namespace

void resample_neon(const Job& job, std::vector<std::uint8_t>& scratch) {
  const AxisView &rows = job.rows, &columns = job.columns;
  const int source_rows = rows.end - rows.begin, row_bytes = 3 * (columns.end - columns.begin);
  // Of narrowed rows, as many as an output row needs, wherever they begin in a group of four, each with room
  // for the last load; then an output row, the pointers to its sources, and rows too short to be loaded from.
  const int kept = round_up(rows.stride + rows_per_group - 1, rows_per_group);
  const int line = round_up(3 * columns.count + 1, load_bytes);
  const std::size_t pointers = static_cast<std::size_t>(kept + 1) * line;
  scratch.resize(pointers + alignof(void*) + kept * sizeof(void*) + rows_per_group * load_bytes);
  std::uint8_t* const finished = scratch.data() + static_cast<std::ptrdiff_t>(kept) * line;
  void* room = scratch.data() + pointers;
  std::size_t room_bytes = scratch.size() - pointers;
  auto** const needed =
      static_cast<const std::uint8_t**>(std::align(alignof(void*), kept * sizeof(void*), room, room_bytes));
  auto* const widened = reinterpret_cast<std::uint8_t*>(needed + kept);

  int made = 0;  // rows narrowed so far
  for (int y = 0; y < rows.count; ++y) {
    const int first = rows.start[y] - rows.begin, taps = rows.taps[y];
    made = std::max(made, first / rows_per_group * rows_per_group);
    for (; made < first + taps; made += rows_per_group) {
      const std::uint8_t* sources[rows_per_group];
      std::uint8_t* lines[rows_per_group];
      for (int r = 0; r < rows_per_group; ++r) {
        sources[r] = job.pixels + std::min(made + r, source_rows - 1) * job.row_stride;
        if (row_bytes < load_bytes)
          sources[r] = static_cast<std::uint8_t*>(
              std::memcpy(widened + r * load_bytes, sources[r], static_cast<std::size_t>(row_bytes)));
        lines[r] = scratch.data() + std::ptrdiff_t{(made + r) % kept} * line;
      }
      narrow(sources, std::max(row_bytes, load_bytes), columns, lines);
    }
    for (int t = 0; t < taps; ++t) needed[t] = scratch.data() + std::ptrdiff_t{(first + t) % kept} * line;
    const std::int32_t* coefficients = rows.coefficients + std::ptrdiff_t{y} * rows.stride;
    for (int at = 0; at < 3 * columns.count; at += load_bytes)
      vst1q_u8(finished + at, filter_rows([&](int t) { return needed[t] + at; }, coefficients, taps));
    store_row(job, finished, y);
  }
}

void vertical_neon(const std::uint8_t* pixels, std::ptrdiff_t row_stride, const AxisView& rows,
                   std::ptrdiff_t row_bytes, std::uint8_t* output) {
  if (row_bytes < load_bytes) return vertical_scalar(pixels, row_stride, rows, row_bytes, output);
  for (int y = 0; y < rows.count; ++y) {
    const std::uint8_t* const first = pixels + (rows.start[y] - rows.begin) * row_stride;
    const std::int32_t* coefficients = rows.coefficients + std::ptrdiff_t{y} * rows.stride;
    for (std::ptrdiff_t i = 0; i < row_bytes; i += load_bytes) {
      const std::ptrdiff_t at = std::min(i, row_bytes - load_bytes);  // the last ones overlap
      vst1q_u8(output + y * row_bytes + at,
               filter_rows([&](int t) { return first + t * row_stride + at; }, coefficients, rows.taps[y]));
    }
  }
}

}  // namespace swsl::resample
