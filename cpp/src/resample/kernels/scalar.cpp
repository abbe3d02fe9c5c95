#include "resample/kernels/scalar.h"

#include "resample/kernels/arithmetic.h"

namespace swsl::resample {
namespace {

// One output value: `step` bytes lie between the pixels under neighbouring taps.
std::uint8_t filter(const std::uint8_t* pixels, std::ptrdiff_t step, const AxisView& axis, int output) {
  const std::int32_t* coefficients = axis.coefficients + std::ptrdiff_t{output} * axis.stride;
  std::int32_t sum = rounding;
  for (int t = 0; t < axis.taps[output]; ++t) sum += pixels[t * step] * coefficients[t];
  return to_pixel(sum);
}

template <typename Value>
void store_values(const std::uint8_t* row, int columns, const Value (&table)[3][256], const Destination& to,
                  int y) {
  Value* output = static_cast<Value*>(to.data) + y * to.row_stride;
  for (int x = 0; x < columns; ++x)
    for (int c = 0; c < 3; ++c)
      output[c * to.plane + x * (to.interleaved ? 3 : 1)] = table[c][row[3 * x + c]];
}

}  // namespace

void vertical_scalar(const std::uint8_t* pixels, std::ptrdiff_t row_stride, const AxisView& rows,
                     std::ptrdiff_t row_bytes, std::uint8_t* output) {
  for (int y = 0; y < rows.count; ++y) {
    const std::uint8_t* first = pixels + (rows.start[y] - rows.begin) * row_stride;
    for (std::ptrdiff_t i = 0; i < row_bytes; ++i)
      output[y * row_bytes + i] = filter(first + i, row_stride, rows, y);
  }
}

// Pillow leaves out a pass that does not change the length. Its coefficients are one 1 and zeros, so it
// changes nothing.
void resample_scalar(const Job& job, std::vector<std::uint8_t>& scratch) {
  const AxisView& rows = job.rows;
  const AxisView& columns = job.columns;
  const std::ptrdiff_t row_bytes = std::ptrdiff_t{3} * columns.count;
  scratch.resize((rows.end - rows.begin + rows.count) * row_bytes);
  std::uint8_t* const narrowed = scratch.data();
  std::uint8_t* const finished = narrowed + (rows.end - rows.begin) * row_bytes;

  for (int y = 0; y < rows.end - rows.begin; ++y) {
    const std::uint8_t* source = job.pixels + y * job.row_stride;
    for (int x = 0; x < columns.count; ++x)
      for (int c = 0; c < 3; ++c)
        narrowed[y * row_bytes + 3 * x + c] =
            filter(source + std::ptrdiff_t{3} * (columns.start[x] - columns.begin) + c, 3, columns, x);
  }
  vertical_scalar(narrowed, row_bytes, rows, row_bytes, finished);

  for (int y = 0; y < rows.count; ++y) store_row(job, finished + y * row_bytes, y);
}

void store_row(const Job& job, const std::uint8_t* row, int y) {
  const Normalization& tables = *job.normalization;
  const int columns = job.columns.count;
  switch (job.destination.element) {
    case Element::float32: store_values(row, columns, tables.float32, job.destination, y); break;
    case Element::bfloat16: store_values(row, columns, tables.bfloat16, job.destination, y); break;
    case Element::float16: store_values(row, columns, tables.float16, job.destination, y); break;
  }
}

}  // namespace swsl::resample
