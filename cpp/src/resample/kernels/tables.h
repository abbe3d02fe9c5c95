// Coefficients in the forms that the vector kernels multiply.
//
// No instruction multiplies 8-bit pixels by 23-bit coefficients and adds neighbours, so coefficients are cut
// into parts that are small enough, and the sums of the parts are put together in the end. That is exact: a
// sum of pixels × parts is an integer, additions modulo 2^32 do not care about order or about passing
// overflows, and the final sum fits 32 bits.
//
//   avx2, halves:   k = low + 2^16 high, signed 16 bits each. vpmaddwd multiplies a pair of taps.
//   avx512, bytes:  k = low + 2^8 middle + 2^16 high, signed 8 bits each. vpdpbusd multiplies four taps.
//                   |k| stays below 2^23 - 2^15: normalisation makes at most bicubic's 1.125 × 2^22.
#pragma once

#include <cstdint>
#include <vector>

#include "resample/axis.h"
#include "resample/kernels/simd.h"

namespace swsl::resample {

// Output row y needs `count[y]` groups of four narrowed rows from group `first[y]` on. Of four rows 0 1 2 3,
// the coefficients are, as halves, the words low01 high01 low23 high23, and as bytes, the words low0123
// middle0123 high0123.
struct RowTable {
  int most = 0;
  int stride = 0;
  std::vector<std::int32_t> first;
  std::vector<std::int32_t> count;
  std::vector<std::int32_t> coefficients;

  RowGroups view() const { return {most, stride, first.data(), count.data(), coefficients.data()}; }
};

RowTable make_row_halves(const Axis& axis);
RowTable make_row_bytes(const Axis& axis);

// For each output `steps` times the words low01 high01 low23 high23.
struct HalvesTable {
  int steps = 0;
  std::vector<std::int32_t> coefficients;

  HalvesColumns view() const { return {steps, coefficients.data()}; }
};

HalvesTable make_column_halves(const Axis& axis);

// Four outputs at a time. A vector has 16 lanes: channel c owns lanes 4c to 4c + 3, the last four are idle.
// The four of a channel are slots of 4 / spread outputs; an output's slots hold neighbouring groups of four
// taps, whose sums are added in the end. Shrinking spreads the outputs over the row; `spread` is what makes
// the pixels under one vector fit its 64 bytes.
struct BytesTable {
  int spread = 4;
  int steps = 0;   // to have seen all taps
  int blocks = 0;  // of 4 outputs
  std::vector<std::int32_t>
      offsets;  // [block][part < spread][step]: of the 64 bytes, behind the first needed pixel
  std::vector<BytesStep> table;  // likewise

  BytesColumns view() const { return {spread, steps, blocks, offsets.data(), table.data()}; }
};

BytesTable make_column_bytes(const Axis& axis);

}  // namespace swsl::resample
