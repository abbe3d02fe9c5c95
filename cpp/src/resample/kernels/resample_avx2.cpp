// AVX2. See tables.h for the coefficients and for why this is exact.
//
// Four source rows are narrowed at once, one output at a time: a half of a vector holds 16 bytes of one row,
// and byte shuffles bring two taps of each channel side by side. They leave as 32-bit words that hold a value
// of each of two rows, the form that vpmaddwd takes in the vertical pass. Only the groups of rows that the
// current output row needs are kept, so they stay in the first-level cache; the vertical pass ends in
// normalised elements.
#include "resample/kernels/simd.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "resample/kernels/arithmetic.h"

namespace swsl::resample {
namespace {

constexpr int vector_lanes = 8;
constexpr int rows_per_group = 4;
constexpr int taps_per_step = 4;
constexpr int load_bytes = 16;

int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// Values of one narrowed row, whole vectors and one more: a pixel is stored as four values of which the last
// is idle.
int line_words(const Job& job) { return round_up(3 * job.columns.count, vector_lanes) + vector_lanes; }

// Two lines for each group; a line holds two rows.
int group_words(const Job& job) { return 2 * line_words(job); }

// The last outputs of a row cannot load 16 bytes for each step, for fear of what lies behind the row. From
// `first_output` on, they read a copy of the row's end, which starts `first_byte` behind the first needed
// pixel.
struct RowEnd {
  int first_output;
  int first_byte;
  int copied;  // bytes
  int size;    // bytes, with room for the last load
};

RowEnd row_end(const Job& job, int steps) {
  const AxisView& columns = job.columns;
  const int row_bytes = 3 * (columns.end - columns.begin);
  const int reach = 3 * taps_per_step * (steps - 1) + load_bytes;
  int first = columns.count;
  while (first > 0 && 3 * (columns.start[first - 1] - columns.begin) + reach > row_bytes) --first;
  if (first == columns.count) return {first, 0, 0, 0};
  const int first_byte = 3 * (columns.start[first] - columns.begin);
  return {first, first_byte, row_bytes - first_byte, row_bytes - first_byte + reach};
}

__m256i two_rows(const std::uint8_t* first, const std::uint8_t* second) {
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(first));
  const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(second));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

__m256i sum_of_halves(__m256i low, __m256i high) {
  return _mm256_add_epi32(low, _mm256_slli_epi32(high, 16));
}

__m256i multiply_add(__m256i sum, __m256i pairs, __m256i coefficients) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, coefficients));
}

// Narrows four rows for the outputs [from, to). `lines[0]` receives words of rows 0 and 1, `lines[1]` of rows
// 2 and 3.
void narrow(const std::uint8_t* const rows[rows_per_group], const AxisView& columns,
            const HalvesColumns& table, int from, int to, int first_byte, std::int32_t* const lines[2]) {
  const __m256i first_taps =
      _mm256_broadcastsi128_si256(_mm_set_epi8(-1, -1, -1, -1, -1, 5, -1, 2, -1, 4, -1, 1, -1, 3, -1, 0));
  const __m256i last_taps =
      _mm256_broadcastsi128_si256(_mm_set_epi8(-1, -1, -1, -1, -1, 11, -1, 8, -1, 10, -1, 7, -1, 9, -1, 6));
  const __m256i zero = _mm256_setzero_si256();
  const __m256i half = _mm256_set1_epi32(rounding);
  for (int x = from; x < to; ++x) {
    const std::int32_t* words = table.coefficients + std::ptrdiff_t{x} * table.steps * taps_per_step;
    std::ptrdiff_t at = 3 * (columns.start[x] - columns.begin) - first_byte;
    __m256i low_a = half, high_a = zero, low_b = half, high_b = zero;  // of rows 0 and 1, of rows 2 and 3
    for (int s = 0; s < table.steps; ++s) {
      const __m256i a = two_rows(rows[0] + at, rows[1] + at);
      const __m256i b = two_rows(rows[2] + at, rows[3] + at);
      const __m256i first_a = _mm256_shuffle_epi8(a, first_taps), last_a = _mm256_shuffle_epi8(a, last_taps);
      const __m256i first_b = _mm256_shuffle_epi8(b, first_taps), last_b = _mm256_shuffle_epi8(b, last_taps);
      const __m256i low01 = _mm256_set1_epi32(words[0]), high01 = _mm256_set1_epi32(words[1]);
      const __m256i low23 = _mm256_set1_epi32(words[2]), high23 = _mm256_set1_epi32(words[3]);
      low_a = multiply_add(multiply_add(low_a, first_a, low01), last_a, low23);
      high_a = multiply_add(multiply_add(high_a, first_a, high01), last_a, high23);
      low_b = multiply_add(multiply_add(low_b, first_b, low01), last_b, low23);
      high_b = multiply_add(multiply_add(high_b, first_b, high01), last_b, high23);
      words += taps_per_step;
      at += 3 * taps_per_step;
    }
    const __m256i a = _mm256_srai_epi32(sum_of_halves(low_a, high_a), fraction_bits);
    const __m256i b = _mm256_srai_epi32(sum_of_halves(low_b, high_b), fraction_bits);
    // The values fit 16 bits. Rows 0 and 2 into the lower half of each word, 1 and 3 into the upper one.
    const __m256i even = _mm256_permute2x128_si256(a, b, 0x20);
    const __m256i odd = _mm256_permute2x128_si256(a, b, 0x31);
    const __m256i pairs = _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
    const __m256i clipped = _mm256_min_epi16(_mm256_max_epi16(pairs, zero), _mm256_set1_epi16(255));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(lines[0] + 3 * x), _mm256_castsi256_si128(clipped));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(lines[1] + 3 * x), _mm256_extracti128_si256(clipped, 1));
  }
}

struct ChannelVectors {
  __m256 mean, std;
};

// `vectors` × 8 normalised values of one output row, from its groups of narrowed rows.
template <int vectors>
[[gnu::always_inline]] inline void filter_columns(const std::int32_t* const* groups, int group_count,
                                                  int line, const std::int32_t* coefficients, int at,
                                                  const ChannelVectors channels[3], float* values) {
  __m256i lows[vectors], highs[vectors];
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    lows[v] = _mm256_set1_epi32(rounding);
    highs[v] = _mm256_setzero_si256();
  }
  for (int g = 0; g < group_count; ++g) {
    const std::int32_t* words = coefficients + 4 * g;
    const __m256i low01 = _mm256_set1_epi32(words[0]), high01 = _mm256_set1_epi32(words[1]);
    const __m256i low23 = _mm256_set1_epi32(words[2]), high23 = _mm256_set1_epi32(words[3]);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const std::int32_t* first = groups[g] + at + v * vector_lanes;
      const __m256i rows01 = _mm256_load_si256(reinterpret_cast<const __m256i*>(first));
      const __m256i rows23 = _mm256_load_si256(reinterpret_cast<const __m256i*>(first + line));
      lows[v] = multiply_add(multiply_add(lows[v], rows01, low01), rows23, low23);
      highs[v] = multiply_add(multiply_add(highs[v], rows01, high01), rows23, high23);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {
    const __m256i value = _mm256_srai_epi32(sum_of_halves(lows[v], highs[v]), fraction_bits);
    const __m256i pixel =
        _mm256_min_epi32(_mm256_max_epi32(value, _mm256_setzero_si256()), _mm256_set1_epi32(255));
    // Division and subtraction round each lane as the scalar code does.
    const __m256 unit = _mm256_div_ps(_mm256_cvtepi32_ps(pixel), _mm256_set1_ps(255.0f));
    const ChannelVectors& channel = channels[(at + v * vector_lanes) % 3];
    _mm256_store_ps(values + at + v * vector_lanes,
                    _mm256_div_ps(_mm256_sub_ps(unit, channel.mean), channel.std));
  }
}

void to_bfloat16(const float* values, int count, std::uint16_t* output) {
  for (int i = 0; i < count; i += vector_lanes) {
    const __m256i bits = _mm256_castps_si256(_mm256_load_ps(values + i));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i upper = _mm256_srli_epi32(rounded, 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(upper, upper), 0x08);
    _mm_store_si128(reinterpret_cast<__m128i*>(output + i), _mm256_castsi256_si128(packed));
  }
}

void to_float16(const float* values, int count, std::uint16_t* output) {
  for (int i = 0; i < count; i += vector_lanes)
    _mm_store_si128(
        reinterpret_cast<__m128i*>(output + i),
        _mm256_cvtps_ph(_mm256_load_ps(values + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

template <typename Value>
void store_row(const Value* row, int columns, const Destination& to, int y) {
  Value* output = static_cast<Value*>(to.data) + y * to.row_stride;
  if (to.interleaved) {
    std::memcpy(output, row, 3 * sizeof(Value) * static_cast<std::size_t>(columns));
    return;
  }
  for (int c = 0; c < 3; ++c)
    for (int x = 0; x < columns; ++x) output[c * to.plane + x] = row[3 * x + c];
}

}  // namespace

std::size_t scratch_size_avx2(const Job& job, const RowGroups& groups) {
  // Groups of narrowed rows, a row of values, the same in 16 bits, the pointers to the groups of one output
  // row, and the ends of four rows, which are no longer than the rows and a load for each step.
  const int row_bytes = 3 * (job.columns.end - job.columns.begin);
  const int end_bytes = row_bytes + 3 * (job.columns.stride + 2 * taps_per_step) + load_bytes;
  return static_cast<std::size_t>(group_words(job)) * groups.most * sizeof(std::int32_t) +
         static_cast<std::size_t>(line_words(job)) * (sizeof(float) + sizeof(std::uint16_t)) +
         groups.most * sizeof(void*) + static_cast<std::size_t>(rows_per_group) * end_bytes;
}

void resample_avx2(const Job& job, const HalvesColumns& table, const RowGroups& groups, void* scratch) {
  const int line = line_words(job);
  auto* const ring = static_cast<std::int32_t*>(scratch);
  auto* const values =
      reinterpret_cast<float*>(ring + static_cast<std::ptrdiff_t>(group_words(job)) * groups.most);
  auto* const halves = reinterpret_cast<std::uint16_t*>(values + line);
  auto* const needed = reinterpret_cast<const std::int32_t**>(halves + line);
  auto* const ends = reinterpret_cast<std::uint8_t*>(needed + groups.most);

  ChannelVectors channels[3];
  for (int first = 0; first < 3; ++first) {
    alignas(32) float mean[vector_lanes], std[vector_lanes];
    for (int lane = 0; lane < vector_lanes; ++lane) {
      mean[lane] = job.normalization->mean[(first + lane) % 3];
      std[lane] = job.normalization->std[(first + lane) % 3];
    }
    channels[first] = {_mm256_load_ps(mean), _mm256_load_ps(std)};
  }

  const RowEnd end = row_end(job, table.steps);
  const int columns = job.columns.count;
  const int source_rows = job.rows.end - job.rows.begin;
  int made = 0;  // groups narrowed so far
  for (int y = 0; y < job.rows.count; ++y) {
    const int first = groups.first[y], count = groups.count[y];
    if (made < first) made = first;
    for (; made < first + count; ++made) {
      const std::uint8_t *rows[rows_per_group], *row_ends[rows_per_group];
      for (int r = 0; r < rows_per_group; ++r) {
        const int row = made * rows_per_group + r;
        rows[r] = job.pixels + (row < source_rows ? row : source_rows - 1) * job.row_stride;
        row_ends[r] = ends + static_cast<std::ptrdiff_t>(r) * end.size;
        std::memcpy(ends + static_cast<std::ptrdiff_t>(r) * end.size, rows[r] + end.first_byte, end.copied);
      }
      std::int32_t* const group = ring + static_cast<std::ptrdiff_t>(made % groups.most) * group_words(job);
      std::int32_t* const lines[2] = {group, group + line};
      narrow(rows, job.columns, table, 0, end.first_output, 0, lines);
      narrow(row_ends, job.columns, table, end.first_output, columns, end.first_byte, lines);
    }
    for (int g = 0; g < count; ++g)
      needed[g] = ring + static_cast<std::ptrdiff_t>((first + g) % groups.most) * group_words(job);
    const std::int32_t* coefficients = groups.coefficients + static_cast<std::ptrdiff_t>(y) * groups.stride;
    int at = 0;
    for (; at + 4 * vector_lanes <= 3 * columns; at += 4 * vector_lanes)
      filter_columns<4>(needed, count, line, coefficients, at, channels, values);
    for (; at < 3 * columns; at += vector_lanes)
      filter_columns<1>(needed, count, line, coefficients, at, channels, values);
    switch (job.destination.element) {
      case Element::float32: store_row(values, columns, job.destination, y); break;
      case Element::bfloat16:
        to_bfloat16(values, 3 * columns, halves);
        store_row(halves, columns, job.destination, y);
        break;
      case Element::float16:
        to_float16(values, 3 * columns, halves);
        store_row(halves, columns, job.destination, y);
        break;
    }
  }
}

void vertical_avx2(const std::uint8_t* pixels, std::ptrdiff_t row_stride, const AxisView& rows,
                   std::ptrdiff_t row_bytes, std::uint8_t* output) {
  for (int y = 0; y < rows.count; ++y) {
    const std::uint8_t* const first = pixels + (rows.start[y] - rows.begin) * row_stride;
    const std::int32_t* const coefficients = rows.coefficients + static_cast<std::ptrdiff_t>(y) * rows.stride;
    std::uint8_t* const result = output + y * row_bytes;
    std::ptrdiff_t i = 0;
    for (; i + vector_lanes <= row_bytes; i += vector_lanes) {
      __m256i sum = _mm256_set1_epi32(rounding);
      for (int t = 0; t < rows.taps[y]; ++t) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(first + t * row_stride + i));
        sum = _mm256_add_epi32(
            sum, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(bytes), _mm256_set1_epi32(coefficients[t])));
      }
      const __m256i words = _mm256_srai_epi32(sum, fraction_bits);
      const __m128i shorts =
          _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(result + i), _mm_packus_epi16(shorts, shorts));
    }
    for (; i < row_bytes; ++i) {
      std::int32_t sum = rounding;
      for (int t = 0; t < rows.taps[y]; ++t) sum += first[t * row_stride + i] * coefficients[t];
      result[i] = to_pixel(sum);
    }
  }
}

}  // namespace swsl::resample

#endif
