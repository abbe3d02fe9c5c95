// Images on their way to a GPU: what is copied there of each, and the descriptors that `packed.h` works from.
//
//   const Packing packing(spec);
//   const auto plan = packing.plan(height, width);      // any thread
//   packing.write(plan, image, host_memory);            // plan.bytes of it, which are then copied to the GPU
//   images.push_back(plan.describe(gpu_memory));
//   const auto blocks = arrange(images, middle);        // once the batch is complete
//
// An image that the GPU itself decodes is there already, and whole: plan_decoded, write_tables,
// describe(gpu_memory, its_pixels).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <swsl/preprocessor.h>
#include "libtorch/cuda/batch/packed.h"
#include "resample/axis.h"
#include "resample/prepared.h"

namespace swsl::resample {

struct PackedPlan {
  Geometry geometry;
  std::shared_ptr<const PreparedAxis> rows, columns;
  int first_row, first_column;            // where the pixels begin in the image
  std::size_t row_stride;                 // of the pixels, in bytes
  std::size_t columns_table, rows_table;  // where they start, behind the pixels that are copied
  std::size_t bytes;                      // a multiple of 16
  std::size_t middle_bytes;               // likewise

  // For the packed bytes at `memory` (null: the sizes alone); `middle` and `first_block` are left to
  // `arrange`. `decoded`: the first pixel of an image that was not packed.
  PackedImage describe(const std::uint8_t* memory, const std::uint8_t* decoded = nullptr) const;
};

// Const functions may be called from any number of threads.
class Packing {
 public:
  explicit Packing(const PreprocessSpec& spec) : spec_(spec), axes_(spec.interpolation, Isa::scalar) {}

  PackedPlan plan(int height, int width) const;

  // Of an image that is on the GPU: its rows start at multiples of 4 bytes, `row_stride` apart, and 16 bytes
  // behind the last one may be read. Only tables are copied.
  PackedPlan plan_decoded(int height, int width, std::size_t row_stride) const;

  // Only the pixels of the source rectangle are read. `memory` is a multiple of 4 and takes plan.bytes.
  void write(const PackedPlan& plan, const ImageView& image, std::uint8_t* memory) const;
  void write_tables(const PackedPlan& plan, std::uint8_t* memory) const;

 private:
  PackedPlan plan_axes(int height, int width) const;

  const PreprocessSpec spec_;
  mutable AxisCache axes_;
};

std::size_t middle_bytes(const PackedImage& image);

// Gives every image its part of `middle` and its blocks of the first pass. Returns how many blocks there are.
std::int64_t arrange(std::vector<PackedImage>& images, std::uint8_t* middle);

}  // namespace swsl::resample
