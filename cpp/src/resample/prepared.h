// An axis with the tables that one instruction set wants, and a cache of them: photographs come in few sizes,
// and computing the coefficients takes a good part of the time that filtering the pixels takes.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "resample/axis.h"
#include "resample/kernels/kernel.h"
#include "resample/kernels/tables.h"

namespace swsl::resample {

enum class Pass { horizontal, vertical };

struct PreparedAxis {
  Axis axis;
  RowTable row_table;         // avx2, avx512: vertical
  HalvesTable column_halves;  // avx2: horizontal
  BytesTable column_bytes;    // avx512: horizontal
};

// The least recently used axis goes when a new one finds no room. Safe to use from many threads.
class SWSL_API AxisCache {
 public:
  AxisCache(Interpolation interpolation, Isa isa) : interpolation_(interpolation), isa_(isa) {}

  std::shared_ptr<const PreparedAxis> get(const AxisGeometry& geometry, Pass pass);

 private:
  struct Entry {
    AxisGeometry geometry;
    Pass pass;
    std::uint64_t used;
    std::shared_ptr<const PreparedAxis> axis;
  };

  std::shared_ptr<const PreparedAxis> find(const AxisGeometry& geometry, Pass pass);

  const Interpolation interpolation_;
  const Isa isa_;
  std::mutex mutex_;
  std::uint64_t clock_ = 0;
  std::vector<Entry> entries_;
};

// Runs the kernel of `isa`, which narrows rows first. `scratch` grows to what is needed and is best kept for
// the next image.
void resample(Isa isa, const std::uint8_t* pixels, std::ptrdiff_t row_stride, const PreparedAxis& rows,
              const PreparedAxis& columns, const Normalization& normalization, const Destination& destination,
              std::vector<std::uint8_t>& scratch);

// One pass down the columns: `row_bytes` of every row, into as many contiguous rows as the crop keeps.
void vertical(Isa isa, const std::uint8_t* pixels, std::ptrdiff_t row_stride, const PreparedAxis& rows,
              std::ptrdiff_t row_bytes, std::uint8_t* output);

}  // namespace swsl::resample
