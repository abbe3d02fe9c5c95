// The readable definition of the resize, against which the fast paths are tested.
#pragma once

#include <cstdint>
#include <vector>

#include "resample/kernels/kernel.h"

namespace swsl::resample {

// Rows first: every needed row is narrowed to the kept columns, then the kept rows are made of those.
// `scratch` grows to what the image needs and may be kept for the next one.
void resample_scalar(const Job& job, std::vector<std::uint8_t>& scratch);

// The pixels of output row y, normalised, to where they belong.
void store_row(const Job& job, const std::uint8_t* row, int y);

// One pass down the columns, `row_bytes` wide, into rows.count contiguous rows.
void vertical_scalar(const std::uint8_t* pixels, std::ptrdiff_t row_stride, const AxisView& rows,
                     std::ptrdiff_t row_bytes, std::uint8_t* output);

// The same on aarch64, where NEON needs no tables of its own and no CPU lacks it.
void resample_neon(const Job& job, std::vector<std::uint8_t>& scratch);
void vertical_neon(const std::uint8_t* pixels, std::ptrdiff_t row_stride, const AxisView& rows,
                   std::ptrdiff_t row_bytes, std::uint8_t* output);

}  // namespace swsl::resample
