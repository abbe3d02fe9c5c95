// How a GPU makes a batch of images of different sizes: two passes over all of them, one thread for each
// value of a pass.
//
// As in the scalar definition rows are narrowed first, unless the image is so tall that Pillow shortens its
// columns first.
#pragma once

#include <cstddef>
#include <cstdint>

#include "resample/kernels/arithmetic.h"
#include "resample/kernels/kernel.h"

namespace swsl::resample {

constexpr int threads_per_block = 256;

// Where an axis's outputs come from. `table` holds start[count], relative to the source rectangle,
// taps[count], and then the coefficients of all outputs for tap 0, for tap 1, …, so that neighbouring threads
// read neighbouring words. Zeros fill the taps up to a multiple of 4.
struct PackedAxis {
  const std::int32_t* table;
  std::int32_t count;
  std::int32_t padding;  // black pixels before them
};

// The source rectangle of an image and what becomes of it. Rows start at multiples of 4 bytes, and 16 bytes
// behind the last one may be read.
struct PackedImage {
  const std::uint8_t* pixels;
  std::uint8_t*
      middle;  // between the passes; pixels take 4 bytes where rows were narrowed first, for one load of each
  std::int64_t row_stride;     // bytes, of the pixels
  std::int64_t middle_stride;  // bytes
  PackedAxis rows, columns;
  std::int32_t source_rows;
  std::int32_t vertical_first;
  std::int64_t first_block;  // of the first pass
};

struct PackedBatch {
  const PackedImage* images;
  int count;
  int height, width;  // of the tensor
  const Normalization* normalization;
  void* output;  // count images
  Element element;
  bool interleaved;
};

// Threads that an image's first pass takes.
SWSL_HOST_DEVICE static inline std::int64_t first_pass_items(const PackedImage& image) {
  return image.vertical_first ? image.rows.count * (image.row_stride / 4)
                              : static_cast<std::int64_t>(image.source_rows) * image.columns.count;
}

SWSL_HOST_DEVICE static inline std::int64_t second_pass_blocks(const PackedBatch& batch) {
  return (static_cast<std::int64_t>(batch.height) * batch.width + threads_per_block - 1) /
         threads_per_block;  // of one image
}

}  // namespace swsl::resample
