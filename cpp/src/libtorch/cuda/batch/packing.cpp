#include "libtorch/cuda/batch/packing.h"

#include <algorithm>
#include <cstring>

namespace swsl::resample {
namespace {

constexpr std::size_t alignment = 16;
constexpr std::size_t readable_behind = 16;  // what the last word loads of a row may touch

std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Coefficients come in fours: taps that an output lacks are zero.
std::size_t padded_taps(const Axis& axis) {
  return round_up(static_cast<std::size_t>(*std::max_element(axis.taps.begin(), axis.taps.end())), 4);
}

std::size_t table_bytes(const Axis& axis) {
  return round_up(
      static_cast<std::size_t>(axis.geometry.count) * (2 + padded_taps(axis)) * sizeof(std::int32_t),
      alignment);
}

// Starts are counted from pixel `first` of the axis.
void write_table(const Axis& axis, int first, std::int32_t* table) {
  const auto count = static_cast<std::size_t>(axis.geometry.count), taps = padded_taps(axis);
  for (std::size_t i = 0; i < count; ++i) {
    table[i] = axis.start[i] - first;
    table[count + i] = axis.taps[i];
    for (std::size_t t = 0; t < taps; ++t)
      table[(2 + t) * count + i] =
          t < static_cast<std::size_t>(axis.taps[i]) ? axis.coefficients[i * axis.stride + t] : 0;
  }
}

void lay_out_tables(PackedPlan& plan, std::size_t begin) {
  plan.columns_table = begin;
  plan.rows_table = plan.columns_table + table_bytes(plan.columns->axis);
  plan.bytes = plan.rows_table + table_bytes(plan.rows->axis);
  plan.middle_bytes = middle_bytes(plan.describe(nullptr));
}

}  // namespace

PackedPlan Packing::plan_axes(int height, int width) const {
  PackedPlan plan{};
  plan.geometry = geometry(spec_, height, width);
  plan.rows = axes_.get(plan.geometry.rows, Pass::vertical);
  plan.columns = axes_.get(plan.geometry.columns, Pass::horizontal);
  plan.first_row = plan.rows->axis.begin;
  return plan;
}

PackedPlan Packing::plan(int height, int width) const {
  PackedPlan plan = plan_axes(height, width);
  const Axis &rows = plan.rows->axis, &columns = plan.columns->axis;
  plan.first_column = columns.begin;
  plan.row_stride = round_up(std::size_t{3} * (columns.end - columns.begin), 4);
  lay_out_tables(plan, round_up(plan.row_stride * (rows.end - rows.begin) + readable_behind, alignment));
  return plan;
}

PackedPlan Packing::plan_decoded(int height, int width, std::size_t row_stride) const {
  PackedPlan plan = plan_axes(height, width);
  plan.row_stride = row_stride;
  lay_out_tables(plan, 0);
  return plan;
}

void Packing::write(const PackedPlan& plan, const ImageView& image, std::uint8_t* memory) const {
  const Axis &rows = plan.rows->axis, &columns = plan.columns->axis;
  const std::size_t row_bytes = std::size_t{3} * (columns.end - columns.begin);
  const std::uint8_t* from = image.data + rows.begin * image.row_stride + std::ptrdiff_t{3} * columns.begin;
  for (int y = 0; y < rows.end - rows.begin; ++y)
    std::memcpy(memory + y * plan.row_stride, from + y * image.row_stride, row_bytes);
  write_tables(plan, memory);
}

void Packing::write_tables(const PackedPlan& plan, std::uint8_t* memory) const {
  write_table(plan.columns->axis, plan.first_column,
              reinterpret_cast<std::int32_t*>(memory + plan.columns_table));
  write_table(plan.rows->axis, plan.first_row, reinterpret_cast<std::int32_t*>(memory + plan.rows_table));
}

PackedImage PackedPlan::describe(const std::uint8_t* memory, const std::uint8_t* decoded) const {
  PackedImage image{};
  image.pixels = decoded != nullptr ? decoded + static_cast<std::size_t>(first_row) * row_stride : memory;
  image.row_stride = static_cast<std::int64_t>(row_stride);
  image.vertical_first = geometry.vertical_first;
  image.source_rows = rows->axis.end - rows->axis.begin;
  const auto table = [memory](std::size_t offset) {
    return memory ? reinterpret_cast<const std::int32_t*>(memory + offset) : nullptr;
  };
  image.rows = {table(rows_table), geometry.rows.count, geometry.rows.padding};
  image.columns = {table(columns_table), geometry.columns.count, geometry.columns.padding};
  image.middle_stride = geometry.vertical_first ? image.row_stride : 4 * std::int64_t{geometry.columns.count};
  return image;
}

std::size_t middle_bytes(const PackedImage& image) {
  const std::int64_t rows = image.vertical_first ? image.rows.count : image.source_rows;
  return round_up(static_cast<std::size_t>(rows * image.middle_stride) + readable_behind, alignment);
}

std::int64_t arrange(std::vector<PackedImage>& images, std::uint8_t* middle) {
  std::int64_t blocks = 0;
  for (auto& image : images) {
    image.middle = middle;
    middle += middle_bytes(image);
    image.first_block = blocks;
    blocks += (first_pass_items(image) + threads_per_block - 1) / threads_per_block;
  }
  return blocks;
}

}  // namespace swsl::resample
