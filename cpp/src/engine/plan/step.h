// The steps of a plan: what `plan.cpp` lays out and `step.cpp` builds and runs.
#pragma once

#include <memory>
#include <vector>

#include "engine/plan/plan.h"

namespace swsl::cpu {

struct Tile {
  std::ptrdiff_t input;   // bytes from the input plane's first image to the tile's first tap
  int pixel;              // index of its first pixel in the output's lines
  TileKernel kernels[2];  // for one vector and for two
  int pixels = 0;         // of a matrix tile
};

struct GroupedRow {
  std::ptrdiff_t input, output;
  GroupedRowKernel kernel;
};

struct Plan::Step {
  enum class Kind { interleave, tiles, grouped_rows, pool };

  Kind kind = Kind::tiles;
  int layer = -1;
  int images = 0;
  int chunks = 0;  // units of work that threads take
  // tiles and grouped rows: a chunk is a range of tiles (rows) by a range of panels
  int tile_ranges = 1, panel_ranges = 1;
  bool prefetch = false;
  std::vector<Tile> tiles;
  std::vector<GroupedRow> rows;
  std::vector<std::ptrdiff_t> block_offsets;
  std::ptrdiff_t pixel_bytes = 0;  // between the inputs of neighbouring output pixels
  std::ptrdiff_t row_step = 0;     // bytes between the input rows of neighbouring output rows
  std::vector<std::int32_t> output_lines, residual_lines;
};

LayerTime describe(const Plan::Step& step, const PackedNetwork& network, const std::vector<Plane>& planes,
                   int batch);

}  // namespace swsl::cpu
