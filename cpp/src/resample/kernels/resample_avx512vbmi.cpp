// AVX-512 with VBMI and VNNI. See tables.h for the tables and for why this is exact.
//
// Four source rows are narrowed at once and leave as 32-bit words that hold one byte of each row: the form in
// which VNNI takes them in the vertical pass. Only the few groups of rows that the current output row needs
// are kept, so they stay in the first-level cache; the vertical pass ends in normalised elements.
#include "resample/kernels/simd.h"

#if defined(__x86_64__)

// GCC 12 takes its own _mm512_undefined_*() for a mistake of ours.
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "resample/kernels/arithmetic.h"

namespace swsl::resample {
namespace {

constexpr int vector_lanes = 16;
constexpr int rows_per_group = 4;

int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// 32-bit words of one group of narrowed rows. Planar: three planes, each padded to whole vectors.
// Interleaved: all channels, padded likewise, and a vector more, because blocks of 12 words are stored 16 at
// a time.
struct GroupShape {
  int plane;
  int vectors;
  int words;
};

GroupShape group_shape(const Job& job) {
  if (job.destination.interleaved) {
    const int plane = round_up(3 * round_up(job.columns.count, 4), vector_lanes);
    return {plane, plane / vector_lanes, plane + vector_lanes};
  }
  const int plane = round_up(job.columns.count, vector_lanes);
  return {plane, 3 * plane / vector_lanes, 3 * plane};
}

// Adds four unsigned × signed products per lane. Written out because GCC copies every accumulator around its
// own intrinsic.
void multiply_add(__m512i& sums, __m512i pixels, __m512i coefficients) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(pixels), "v"(coefficients));
}

struct Sums {
  __m512i low, middle, high;
};

__m512i total(const Sums& sums) {
  const __m512i upper = _mm512_add_epi32(sums.middle, _mm512_slli_epi32(sums.high, 8));
  return _mm512_add_epi32(sums.low, _mm512_slli_epi32(upper, 8));
}

// Per channel: {a0 + a1, a2 + a3, b0 + b1, b2 + b3}.
__m512i add_neighbours(__m512i a, __m512i b) {
  const __m512 x = _mm512_castsi512_ps(a), y = _mm512_castsi512_ps(b);
  return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88)),
                          _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xdd)));
}

// The sums of one part of a block, for four rows, not yet added across slots. Each `lows[r]` and so on is a
// variable of its own to the compiler only if everything is inlined.
[[gnu::always_inline]] inline void filter_part(const std::uint8_t* const rows[rows_per_group],
                                               const std::int32_t* offsets, const BytesStep* table, int steps,
                                               __m512i out[rows_per_group]) {
  const __m512i zero = _mm512_setzero_si512();
  const __m512i channel = _mm512_set_epi32(0, 0, 0, 0, 0x02020202, 0x02020202, 0x02020202, 0x02020202,
                                           0x01010101, 0x01010101, 0x01010101, 0x01010101, 0, 0, 0, 0);
  __m512i lows[rows_per_group], middles[rows_per_group], highs[rows_per_group];
#pragma GCC unroll 4
  for (int r = 0; r < rows_per_group; ++r) lows[r] = middles[r] = highs[r] = zero;
  for (int s = 0; s < steps; ++s) {
    const auto load = [](const void* bytes) {
      return _mm512_broadcast_i32x4(_mm_load_si128(static_cast<const __m128i*>(bytes)));
    };
    const __m512i pick = _mm512_add_epi8(load(table[s].pick), channel);
    const __m512i low = load(table[s].low), middle = load(table[s].middle), high = load(table[s].high);
#pragma GCC unroll 4
    for (int r = 0; r < rows_per_group; ++r) {
      const __m512i pixels = _mm512_permutexvar_epi8(pick, _mm512_loadu_si512(rows[r] + offsets[s]));
      multiply_add(lows[r], pixels, low);
      multiply_add(middles[r], pixels, middle);
      multiply_add(highs[r], pixels, high);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows_per_group; ++r) out[r] = total({lows[r], middles[r], highs[r]});
}

// Narrows four rows. `words` receives one 32-bit word for each value, with a byte of each row.
template <int spread>
void narrow(const std::uint8_t* const rows[rows_per_group], const BytesColumns& columns, bool interleaved,
            int plane, std::int32_t* words) {
  // Within a channel: four bytes of each row in turn, to four words with a byte of each row.
  const __m512i transpose =
      _mm512_broadcast_i32x4(_mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0));
  const __m512i interleave = _mm512_set_epi32(15, 14, 13, 12, 11, 7, 3, 10, 6, 2, 9, 5, 1, 8, 4, 0);
  const __m512i half = _mm512_set1_epi32(rounding);
  const std::int32_t* offsets = columns.offsets;
  const BytesStep* table = columns.table;
  for (int block = 0; block < columns.blocks; ++block) {
    __m512i parts[spread][rows_per_group];
    for (int part = 0; part < spread; ++part) {
      filter_part(rows, offsets, table, columns.steps, parts[part]);
      offsets += columns.steps;
      table += columns.steps;
    }
    __m512i values[rows_per_group];
    for (int r = 0; r < rows_per_group; ++r) {
      __m512i sum;
      if constexpr (spread == 1) {
        sum = parts[0][r];
      } else if constexpr (spread == 2) {
        sum = add_neighbours(parts[0][r], parts[1][r]);
      } else {
        sum = add_neighbours(add_neighbours(parts[0][r], parts[1][r]),
                             add_neighbours(parts[2][r], parts[3][r]));
      }
      values[r] = _mm512_srai_epi32(_mm512_add_epi32(sum, half), fraction_bits);
    }
    // Signed, then unsigned saturation: together they clip to 0 … 255.
    const __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(values[0], values[1]),
                                              _mm512_packs_epi32(values[2], values[3]));
    const __m512i quads = _mm512_shuffle_epi8(bytes, transpose);
    if (interleaved) {
      _mm512_storeu_si512(words + 12 * block, _mm512_permutexvar_epi32(interleave, quads));
    } else {
      for (int c = 0; c < 3; ++c) {
        const __m128i four = c == 0   ? _mm512_castsi512_si128(quads)
                             : c == 1 ? _mm512_extracti32x4_epi32(quads, 1)
                                      : _mm512_extracti32x4_epi32(quads, 2);
        _mm_store_si128(reinterpret_cast<__m128i*>(words + c * plane + 4 * block), four);
      }
    }
  }
}

// `vectors` × 16 sums of one output row, from its groups of narrowed rows, scaled back and clipped to pixels.
template <int vectors>
void filter_columns(const std::int32_t* const* groups, int group_count, const std::int32_t* coefficients,
                    int at, std::int32_t* pixels) {
  const __m512i zero = _mm512_setzero_si512();
  Sums sums[vectors];
  for (Sums& sum : sums) sum = {_mm512_set1_epi32(rounding), zero, zero};
  for (int g = 0; g < group_count; ++g) {
    const __m512i low = _mm512_set1_epi32(coefficients[3 * g]);
    const __m512i middle = _mm512_set1_epi32(coefficients[3 * g + 1]);
    const __m512i high = _mm512_set1_epi32(coefficients[3 * g + 2]);
    for (int v = 0; v < vectors; ++v) {
      const __m512i words = _mm512_load_si512(groups[g] + at + v * vector_lanes);
      multiply_add(sums[v].low, words, low);
      multiply_add(sums[v].middle, words, middle);
      multiply_add(sums[v].high, words, high);
    }
  }
  for (int v = 0; v < vectors; ++v) {
    const __m512i value = _mm512_srai_epi32(total(sums[v]), fraction_bits);
    const __m512i clipped = _mm512_min_epi32(_mm512_max_epi32(value, zero), _mm512_set1_epi32(255));
    _mm512_store_si512(pixels + at + v * vector_lanes, clipped);
  }
}

struct ChannelVectors {
  __m512 mean, std;
};

template <Element element>
void store(void* data, std::ptrdiff_t at, __mmask16 lanes, const std::int32_t* pixels,
           const ChannelVectors& channels) {
  // Division and subtraction round each lane as the scalar code does.
  const __m512 unit = _mm512_div_ps(_mm512_cvtepi32_ps(_mm512_load_si512(pixels)), _mm512_set1_ps(255.0f));
  const __m512 value = _mm512_div_ps(_mm512_sub_ps(unit, channels.mean), channels.std);
  if constexpr (element == Element::float32) {
    _mm512_mask_storeu_ps(static_cast<float*>(data) + at, lanes, value);
  } else if constexpr (element == Element::bfloat16) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    _mm256_mask_storeu_epi16(static_cast<std::uint16_t*>(data) + at, lanes,
                             _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  } else {
    _mm256_mask_storeu_epi16(static_cast<std::uint16_t*>(data) + at, lanes,
                             _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
}

__mmask16 first_lanes(int count) {
  return static_cast<__mmask16>(count >= vector_lanes ? 0xffff : (1u << count) - 1);
}

template <Element element>
void store_row(const Job& job, int y, const std::int32_t* pixels, int plane,
               const ChannelVectors channels[3]) {
  const Destination& to = job.destination;
  const int planes = to.interleaved ? 1 : 3;
  const int count = to.interleaved ? 3 * job.columns.count : job.columns.count;
  for (int p = 0; p < planes; ++p)
    for (int x = 0; x < count; x += vector_lanes) {
      const int phase = to.interleaved ? x / vector_lanes % 3 : p;
      store<element>(to.data, p * to.plane + y * to.row_stride + x, first_lanes(count - x),
                     pixels + p * plane + x, channels[phase]);
    }
}

constexpr int most_vector_bytes = 64;

// Rows too short for a vector are brought to where a vector can be read.
struct ShortRows {
  alignas(64) std::uint8_t bytes[rows_per_group][most_vector_bytes];
};

}  // namespace

std::size_t scratch_size_avx512(const Job& job, const RowGroups& groups) {
  const GroupShape shape = group_shape(job);
  // Groups of narrowed rows, one row of pixels, the pointers to the groups of one output row.
  return (static_cast<std::size_t>(shape.words) * groups.most + shape.words) * sizeof(std::int32_t) +
         groups.most * sizeof(void*);
}

void resample_avx512(const Job& job, const BytesColumns& columns, const RowGroups& groups, void* scratch) {
  const GroupShape shape = group_shape(job);
  auto* const ring = static_cast<std::int32_t*>(scratch);
  std::int32_t* const pixels = ring + static_cast<std::ptrdiff_t>(shape.words) * groups.most;
  auto* const needed = reinterpret_cast<const std::int32_t**>(pixels + shape.words);

  const Normalization& normalization = *job.normalization;
  ChannelVectors channels[3];
  for (int phase = 0; phase < 3; ++phase) {
    alignas(64) float mean[vector_lanes], std[vector_lanes];
    for (int lane = 0; lane < vector_lanes; ++lane) {
      // Interleaved: a vector starts one channel later than the one before, since 16 = 5 × 3 + 1.
      const int c = job.destination.interleaved ? (phase + lane) % 3 : phase;
      mean[lane] = normalization.mean[c];
      std[lane] = normalization.std[c];
    }
    channels[phase] = {_mm512_load_ps(mean), _mm512_load_ps(std)};
  }

  const int source_rows = job.rows.end - job.rows.begin;
  const int source_bytes = 3 * (job.columns.end - job.columns.begin);
  ShortRows short_rows;
  int made = 0;  // groups narrowed so far
  for (int y = 0; y < job.rows.count; ++y) {
    const int first = groups.first[y], count = groups.count[y];
    if (made < first) made = first;
    for (; made < first + count; ++made) {
      const std::uint8_t* rows[rows_per_group];
      for (int r = 0; r < rows_per_group; ++r) {
        const int row = made * rows_per_group + r;
        rows[r] = job.pixels + (row < source_rows ? row : source_rows - 1) * job.row_stride;
        if (source_bytes < most_vector_bytes) {
          for (int i = 0; i < source_bytes; ++i) short_rows.bytes[r][i] = rows[r][i];
          rows[r] = short_rows.bytes[r];
        }
      }
      std::int32_t* words = ring + static_cast<std::ptrdiff_t>(made % groups.most) * shape.words;
      const bool interleaved = job.destination.interleaved;
      switch (columns.spread) {
        case 1: narrow<1>(rows, columns, interleaved, shape.plane, words); break;
        case 2: narrow<2>(rows, columns, interleaved, shape.plane, words); break;
        default: narrow<4>(rows, columns, interleaved, shape.plane, words); break;
      }
    }
    for (int g = 0; g < count; ++g)
      needed[g] = ring + static_cast<std::ptrdiff_t>((first + g) % groups.most) * shape.words;
    const std::int32_t* coefficients = groups.coefficients + static_cast<std::ptrdiff_t>(y) * groups.stride;
    int v = 0;
    for (; v + 6 <= shape.vectors; v += 6)
      filter_columns<6>(needed, count, coefficients, v * vector_lanes, pixels);
    for (; v < shape.vectors; ++v) filter_columns<1>(needed, count, coefficients, v * vector_lanes, pixels);
    switch (job.destination.element) {
      case Element::float32: store_row<Element::float32>(job, y, pixels, shape.plane, channels); break;
      case Element::bfloat16: store_row<Element::bfloat16>(job, y, pixels, shape.plane, channels); break;
      case Element::float16: store_row<Element::float16>(job, y, pixels, shape.plane, channels); break;
    }
  }
}

}  // namespace swsl::resample

#endif
