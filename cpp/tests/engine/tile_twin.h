// What the tile instructions of AMX do, in plain C++ that any processor runs: the kernel's own source
// compiles with it. Stricter than the processor where that finds mistakes: a register holds nothing until
// something is loaded.
#pragma once

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors wider than the processor's are passed around
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "engine/bfloat16.h"
#include "engine/kernels/matrix_tile.h"
#include "engine/kernels/portable.h"

namespace swsl::cpu {

struct TileTwin {
  static void configure(const TileConfiguration& wanted) {
    if (wanted.palette != 1 || wanted.start_row != 0)
      throw std::logic_error("tiles: no such palette or first row");
    for (int i = 0; i < 16; ++i)
      if (wanted.rows[i] > 16 || wanted.row_bytes[i] > 64 ||
          (i >= 8 && (wanted.rows[i] | wanted.row_bytes[i])))
        throw std::logic_error("tile " + std::to_string(i) + ": at most 16 rows of 64 bytes, in 8 tiles");
    threads_configured += configured ? 0 : 1;
    configured = true;
    configuration = wanted;
    for (auto& tile : tiles) tile.loaded = false;
  }
  static void release() {
    threads_configured -= configured ? 1 : 0;
    configured = false;
  }
  template <int tile>
  static void load(const void* rows, std::ptrdiff_t row_step) {
    for (int row = 0; row < rows_of(tile); ++row)
      std::memcpy(tiles[tile].rows[row], static_cast<const char*>(rows) + row * row_step,
                  configuration.row_bytes[tile]);
    tiles[tile].loaded = true;
  }
  template <int tile>
  static void store(void* rows, std::ptrdiff_t row_step) {
    for (int row = 0; row < rows_of(loaded(tile)); ++row)
      std::memcpy(static_cast<char*>(rows) + row * row_step, tiles[tile].rows[row],
                  configuration.row_bytes[tile]);
  }
  // TDPBF16PS, as Intel's manual defines it: the products of first and of second numbers are summed apart,
  // then added to each other and to what is there; every sum is rounded to the nearest, and denormals are 0.
  // Its loops touch nothing but tiles: checking each of their steps too would take most of a sanitizer's
  // time.
  template <int sums, int left, int right>
  __attribute__((no_sanitize("address", "undefined"))) static void multiply() {
    const int rows = rows_of(loaded(sums)), columns = configuration.row_bytes[sums] / 4,
              pairs = rows_of(loaded(right));
    if (rows != rows_of(loaded(left)) || pairs != configuration.row_bytes[left] / 4 ||
        columns != configuration.row_bytes[right] / 4)
      throw std::logic_error("tiles: a product of shapes that do not fit");
    double factors[2][16][16];  // in double precision product and sum are exact enough to be rounded once
    for (int pair = 0; pair < pairs; ++pair)
      for (int i = 0; i < 2 * columns; ++i) factors[i % 2][pair][i / 2] = number(tiles[right].rows[pair], i);
    for (int row = 0; row < rows; ++row) {
      float chains[2][16] = {};
      for (int i = 0; i < 2 * pairs; ++i) {
        const double factor = number(tiles[left].rows[row], i);
        for (int column = 0; column < columns; ++column) {
          float& sum = chains[i % 2][column];
          sum = flushed(static_cast<float>(sum + factor * factors[i % 2][i / 2][column]));
        }
      }
      for (int column = 0; column < columns; ++column) {
        float sum;
        char* at = tiles[sums].rows[row] + 4 * column;
        std::memcpy(&sum, at, sizeof sum);
        sum = flushed(flushed(sum) + flushed(chains[0][column] + chains[1][column]));
        std::memcpy(at, &sum, sizeof sum);
      }
    }
  }

  static inline std::atomic<int> threads_configured = 0;

 private:
  struct Tile {
    bool loaded;
    char rows[16][64];
  };
  static int rows_of(int tile) {
    if (!configured) throw std::logic_error("tiles: this thread has no configuration");
    return configuration.rows[tile];
  }
  static int loaded(int tile) {
    if (!tiles[tile].loaded)
      throw std::logic_error("tile " + std::to_string(tile) + " is used before it is loaded");
    return tile;
  }
  static float flushed(float value) {
    return std::fabs(value) < FLT_MIN ? std::copysign(0.0f, value) : value;
  }
  static float number(const char* row, int index) {
    std::uint16_t bits;
    std::memcpy(&bits, row + 2 * index, sizeof bits);
    return flushed(from_bfloat16(bits));
  }

  static inline thread_local bool configured = false;
  static inline thread_local TileConfiguration configuration;
  static inline thread_local Tile tiles[8];
};

inline const KernelSet& twin_kernels() {
  static const KernelSet set = matrix_set<TileTwin, Portable<true>>(Isa::amx, portable_bfloat16_kernels());
  return set;
}

}  // namespace swsl::cpu
