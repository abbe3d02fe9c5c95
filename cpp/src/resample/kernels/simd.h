// The vector kernels and the tables that they read. Plain pointers only, for the reason given in kernel.h;
// the tables are made by tables.h, which says what they mean.
#pragma once

#include "resample/kernels/kernel.h"

namespace swsl::resample {

// The vertical pass: four narrowed rows make a group, counted from the first needed row.
struct RowGroups {
  int most;    // groups that one output row needs
  int stride;  // words of `coefficients` for one output row
  const std::int32_t* first;
  const std::int32_t* count;
  const std::int32_t* coefficients;
};

// avx2, the horizontal pass: `steps` × 4 taps for each output.
struct HalvesColumns {
  int steps;
  const std::int32_t* coefficients;
};

// avx512, one step of the horizontal pass: of 64 bytes of a source row, `pick` chooses the first channel's
// byte for each of 4 slots × 4 taps; the other channels' lie one and two further on and have the same
// coefficients.
struct alignas(64) BytesStep {
  std::uint8_t pick[16];
  std::int8_t low[16];
  std::int8_t middle[16];
  std::int8_t high[16];
};

struct BytesColumns {
  int spread;
  int steps;
  int blocks;
  const std::int32_t* offsets;
  const BytesStep* table;
};

// `scratch` must be aligned to 64 bytes.
std::size_t scratch_size_avx2(const Job& job, const RowGroups& groups);
void resample_avx2(const Job& job, const HalvesColumns& columns, const RowGroups& groups, void* scratch);

std::size_t scratch_size_avx512(const Job& job, const RowGroups& groups);
void resample_avx512(const Job& job, const BytesColumns& columns, const RowGroups& groups, void* scratch);

// As vertical_scalar.
void vertical_avx2(const std::uint8_t* pixels, std::ptrdiff_t row_stride, const AxisView& rows,
                   std::ptrdiff_t row_bytes, std::uint8_t* output);

}  // namespace swsl::resample
