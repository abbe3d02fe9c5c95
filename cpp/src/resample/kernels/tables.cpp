#include "resample/kernels/tables.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace swsl::resample {
namespace {

constexpr int group = 4;  // taps, or rows, whose coefficients lie together

using Taps = std::array<std::int32_t, group>;

struct Bytes {
  std::int8_t low, middle, high;
};

Bytes bytes(std::int32_t k) {
  const auto low = static_cast<std::int8_t>(k);
  const auto middle = static_cast<std::int8_t>((k - low) >> 8);
  return {low, middle, static_cast<std::int8_t>((k - low - middle * 256) >> 16)};
}

void append_bytes(const Taps& taps, std::vector<std::int32_t>& words) {
  std::int8_t parts[3][group];
  for (int t = 0; t < group; ++t) {
    const Bytes k = bytes(taps[t]);
    parts[0][t] = k.low;
    parts[1][t] = k.middle;
    parts[2][t] = k.high;
  }
  for (const auto& part : parts) {
    std::int32_t word;
    std::memcpy(&word, part, sizeof word);
    words.push_back(word);
  }
}

void append_halves(const Taps& taps, std::vector<std::int32_t>& words) {
  for (int t = 0; t < group; t += 2) {
    std::int16_t low[2], high[2];
    for (int i = 0; i < 2; ++i) {
      low[i] = static_cast<std::int16_t>(taps[t + i]);
      high[i] = static_cast<std::int16_t>((taps[t + i] - low[i]) >> 16);
    }
    for (const auto& pair : {low, high}) {
      std::int32_t word;
      std::memcpy(&word, pair, sizeof word);
      words.push_back(word);
    }
  }
}

// Taps [first, first + 4) of an output, zero where it has none.
Taps taps_from(const Axis& axis, int output, int first) {
  Taps result{};
  const std::int32_t* coefficients =
      axis.coefficients.data() + static_cast<std::size_t>(output) * axis.stride;
  for (int t = std::max(first, 0); t < std::min(first + group, axis.taps[output]); ++t)
    result[t - first] = coefficients[t];
  return result;
}

RowTable make_rows(const Axis& axis, int words_per_group,
                   void (*append)(const Taps&, std::vector<std::int32_t>&)) {
  RowTable result;
  for (int y = 0; y < axis.geometry.count; ++y) {
    const int start = axis.start[y] - axis.begin;
    result.first.push_back(start / group);
    result.count.push_back((start + axis.taps[y] - 1) / group - start / group + 1);
    result.most = std::max(result.most, result.count.back());
  }
  result.stride = words_per_group * result.most;
  result.coefficients.reserve(static_cast<std::size_t>(axis.geometry.count) * result.stride);
  for (int y = 0; y < axis.geometry.count; ++y)
    for (int g = 0; g < result.most; ++g)
      append(taps_from(axis, y, (result.first[y] + g) * group - (axis.start[y] - axis.begin)),
             result.coefficients);
  return result;
}

int most_taps(const Axis& axis) { return *std::max_element(axis.taps.begin(), axis.taps.end()); }

int steps_for(const Axis& axis, int spread) {
  return (most_taps(axis) + group * spread - 1) / (group * spread);
}

// The source bytes under the lanes of one step, counted from the first needed pixel.
struct Extent {
  int begin = 0;
  int end = 0;
};

Extent extent(const Axis& axis, int first_output, int spread, int step) {
  Extent result;
  const int tap = group * spread * step;
  for (int o = first_output; o < std::min(first_output + 4 / spread, axis.geometry.count); ++o) {
    const int last = std::min(axis.taps[o], tap + group * spread);
    if (tap >= last) continue;
    const int begin = 3 * (axis.start[o] - axis.begin + tap);
    result.begin = result.end ? std::min(result.begin, begin) : begin;
    result.end = std::max(result.end, 3 * (axis.start[o] - axis.begin + last));
  }
  return result;
}

constexpr int vector_bytes = 64;

bool fits(const Axis& axis, int spread) {
  const int steps = steps_for(axis, spread);
  for (int o = 0; o < axis.geometry.count; o += 4 / spread)
    for (int step = 0; step < steps; ++step) {
      const Extent bytes = extent(axis, o, spread, step);
      if (bytes.end - bytes.begin > vector_bytes) return false;
    }
  return true;
}

BytesStep make_step(const Axis& axis, int first_output, int spread, int step, int offset) {
  BytesStep result{};
  for (int slot = 0; slot < 4; ++slot) {
    const int output = first_output + slot / spread;
    if (output >= axis.geometry.count) continue;
    const int tap = group * (spread * step + slot % spread);
    const Taps taps = taps_from(axis, output, tap);
    for (int t = 0; t < group; ++t) {
      if (tap + t >= axis.taps[output]) continue;  // its byte may lie outside the vector: pick any
      const int at = group * slot + t;
      result.pick[at] = static_cast<std::uint8_t>(3 * (axis.start[output] - axis.begin + tap + t) - offset);
      const Bytes k = bytes(taps[t]);
      result.low[at] = k.low;
      result.middle[at] = k.middle;
      result.high[at] = k.high;
    }
  }
  return result;
}

}  // namespace

RowTable make_row_halves(const Axis& axis) { return make_rows(axis, 4, append_halves); }

RowTable make_row_bytes(const Axis& axis) { return make_rows(axis, 3, append_bytes); }

HalvesTable make_column_halves(const Axis& axis) {
  HalvesTable result;
  result.steps = steps_for(axis, 1);
  result.coefficients.reserve(static_cast<std::size_t>(axis.geometry.count) * result.steps * group);
  for (int x = 0; x < axis.geometry.count; ++x)
    for (int step = 0; step < result.steps; ++step)
      append_halves(taps_from(axis, x, group * step), result.coefficients);
  return result;
}

BytesTable make_column_bytes(const Axis& axis) {
  BytesTable result;  // spread 4 is one output of 16 taps, whose 48 bytes always fit
  for (const int spread : {2, 1})
    if (spread * steps_for(axis, spread) <= result.spread * steps_for(axis, result.spread) &&
        fits(axis, spread))
      result.spread = spread;
  result.steps = steps_for(axis, result.spread);
  result.blocks = (axis.geometry.count + 3) / 4;

  const int row_bytes = 3 * (axis.end - axis.begin);
  const int parts = result.blocks * result.spread;
  result.offsets.reserve(static_cast<std::size_t>(parts) * result.steps);
  result.table.reserve(static_cast<std::size_t>(parts) * result.steps);
  for (int part = 0; part < parts; ++part) {
    const int first_output = part * (4 / result.spread);
    for (int step = 0; step < result.steps; ++step) {
      // The vector must not reach behind the row, beyond which there may be no memory.
      const int begin = extent(axis, first_output, result.spread, step).begin;
      const int offset = std::min(begin, std::max(row_bytes - vector_bytes, 0));
      result.offsets.push_back(offset);
      result.table.push_back(make_step(axis, first_output, result.spread, step, offset));
    }
  }
  return result;
}

}  // namespace swsl::resample
