// Products of 16×16 matrices by a warp; see cuda_runtime_api.h. Each thread holds, multiplies and stores half
// a column of the result: how a GPU spreads a matrix over a warp is its secret too. Nothing here waits for
// the other threads, so that a missing
// __syncwarp shows.
#pragma once

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime_api.h"

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
enum layout_t { mem_row_major };

template <typename Use, int m, int n, int k, typename T, typename Layout = void>
struct fragment;
template <typename T>
struct fragment<matrix_a, 16, 16, 16, T, row_major> {
  float rows[8][16];
};
template <typename T>
struct fragment<matrix_b, 16, 16, 16, T, row_major> {
  float column[16];
};
template <>
struct fragment<accumulator, 16, 16, 16, float> {
  float sums[8];
};

inline unsigned column() { return threadIdx.x % 16; }
inline unsigned first_row() { return threadIdx.x % 32 / 16 * 8; }

inline float number(__half x) { return __half2float(x); }
inline float number(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
void load_matrix_sync(fragment<matrix_a, 16, 16, 16, T, row_major>& a, const T* from, unsigned ldm) {
  cuda_on_cpu::together(from, ldm * sizeof(T), 32);
  for (unsigned i = 0; i < 8; ++i)
    for (unsigned j = 0; j < 16; ++j) a.rows[i][j] = number(from[(first_row() + i) * ldm + j]);
}

template <typename T>
void load_matrix_sync(fragment<matrix_b, 16, 16, 16, T, row_major>& b, const T* from, unsigned ldm) {
  cuda_on_cpu::together(from, ldm * sizeof(T), 32);
  for (unsigned i = 0; i < 16; ++i) b.column[i] = number(from[i * ldm + column()]);
}

inline void fill_fragment(fragment<accumulator, 16, 16, 16, float>& d, float value) {
  for (float& sum : d.sums) sum = value;
}

template <typename T>
void mma_sync(fragment<accumulator, 16, 16, 16, float>& d,
              const fragment<matrix_a, 16, 16, 16, T, row_major>& a,
              const fragment<matrix_b, 16, 16, 16, T, row_major>& b,
              const fragment<accumulator, 16, 16, 16, float>& c) {
  cuda_on_cpu::together(nullptr, 0, 1);
  for (int i = 0; i < 8; ++i) {
    d.sums[i] = c.sums[i];
    for (int j = 0; j < 16; ++j) d.sums[i] += a.rows[i][j] * b.column[j];
  }
}

inline void store_matrix_sync(float* to, const fragment<accumulator, 16, 16, 16, float>& d, unsigned ldm,
                              layout_t) {
  cuda_on_cpu::together(to, ldm * sizeof(float), 32);
  for (unsigned i = 0; i < 8; ++i) to[(first_row() + i) * ldm + column()] = d.sums[i];
}

}  // namespace nvcuda::wmma
