#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

#include <cmath>
#include <type_traits>

#include "libtorch/cuda/engine/kernels.h"
#include "libtorch/cuda/launch.h"

namespace swsl::cuda {

extern __shared__ __align__(32) unsigned char shared_memory[];  // as tensor cores load and store matrices

namespace {

__device__ float to_float(float x) { return x; }
__device__ float to_float(__half x) { return __half2float(x); }
__device__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ T from_float(float x);
template <>
__device__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// `count` values that are loaded and stored as one.
template <typename T, int count>
struct alignas(sizeof(T) * count) Pack {
  T values[count];
};

template <typename T, int count>
__global__ void epilogue_kernel(T* data, const float* bias, const T* residual, std::int64_t packs,
                                int channels, bool relu) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= packs) return;
  using P = Pack<T, count>;
  P values = reinterpret_cast<P*>(data)[index];
  P added{};
  if (residual != nullptr) added = reinterpret_cast<const P*>(residual)[index];
  const auto biases = *reinterpret_cast<const Pack<float, count>*>(bias + index * count % channels);
#pragma unroll
  for (int i = 0; i < count; ++i) {
    float value = to_float(values.values[i]) + biases.values[i];
    if (residual != nullptr) value += to_float(added.values[i]);
    values.values[i] = from_float<T>(relu && value < 0 ? 0 : value);  // not fmax, which would hide a NaN
  }
  reinterpret_cast<P*>(data)[index] = values;
}

template <typename T, int count>
const char* launch_epilogue(void* data, const float* bias, const void* residual, std::int64_t pixels,
                            int channels, bool relu, cudaStream_t stream) {
  constexpr int threads = 256;
  const std::int64_t packs = pixels * channels / count, blocks = (packs + threads - 1) / threads;
  if (blocks > most_blocks) return "more values than one launch can take";
  return launch(epilogue_kernel<T, count>, static_cast<unsigned>(blocks), threads, 0, stream,
                static_cast<T*>(data), bias, static_cast<const T*>(residual), packs, channels, relu);
}

template <typename T>
const char* epilogue(void* data, const float* bias, const void* residual, std::int64_t pixels, int channels,
                     bool relu, cudaStream_t stream) {
  constexpr int widest = 16 / sizeof(T);
  return channels % widest == 0
             ? launch_epilogue<T, widest>(data, bias, residual, pixels, channels, relu, stream)
             : launch_epilogue<T, 1>(data, bias, residual, pixels, channels, relu, stream);
}

template <typename T, int count>
__global__ void max_pool_kernel(PoolShape s, const T* input, T* output, std::int64_t packs) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= packs) return;
  using P = Pack<T, count>;
  const int packs_of_pixel = s.channels / count, pack = static_cast<int>(index % packs_of_pixel);
  const std::int64_t pixel = index / packs_of_pixel;
  const int out_x = static_cast<int>(pixel % s.out_width),
            out_y = static_cast<int>(pixel / s.out_width % s.out_height);
  const int top = out_y * s.stride_height - s.pad_height, left = out_x * s.stride_width - s.pad_width;
  const P* image = reinterpret_cast<const P*>(input) +
                   pixel / s.out_width / s.out_height * s.height * s.width * packs_of_pixel + pack;
  float largest[count];
#pragma unroll
  for (int i = 0; i < count; ++i) largest[i] = -INFINITY;
  for (int y = top < 0 ? 0 : top; y < top + s.kernel_height && y < s.height; ++y)
    for (int x = left < 0 ? 0 : left; x < left + s.kernel_width && x < s.width; ++x) {
      const P values = image[(static_cast<std::int64_t>(y) * s.width + x) * packs_of_pixel];
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const float value = to_float(values.values[i]);
        if (value > largest[i] || value != value) largest[i] = value;
      }
    }
  P result;
#pragma unroll
  for (int i = 0; i < count; ++i) result.values[i] = from_float<T>(largest[i]);
  reinterpret_cast<P*>(output)[index] = result;
}

template <typename T, int count>
const char* launch_max_pool(const PoolShape& s, const void* input, void* output, cudaStream_t stream) {
  constexpr int threads = 256;
  const std::int64_t packs =
      static_cast<std::int64_t>(s.images) * s.out_height * s.out_width * (s.channels / count);
  const std::int64_t blocks = (packs + threads - 1) / threads;
  if (blocks > most_blocks) return "more values than one launch can take";
  return launch(max_pool_kernel<T, count>, static_cast<unsigned>(blocks), threads, 0, stream, s,
                static_cast<const T*>(input), static_cast<T*>(output), packs);
}

template <typename T>
const char* max_pool(const PoolShape& s, const void* input, void* output, cudaStream_t stream) {
  constexpr int widest = 16 / sizeof(T);
  return s.channels % widest == 0 ? launch_max_pool<T, widest>(s, input, output, stream)
                                  : launch_max_pool<T, 1>(s, input, output, stream);
}

// Tensor cores before compute capability 8.0 have no bfloat16; `run_grouped` refuses it there.
template <typename T>
__device__ constexpr bool multiplies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return !std::is_same_v<T, __nv_bfloat16>;
#else
  return true;
#endif
}

template <typename T>
__device__ void grouped_block(const GroupedShape& s, const T* __restrict__ input,
                              const T* __restrict__ weights, const float* __restrict__ bias, bool relu,
                              T* __restrict__ output) {
  using namespace nvcuda;
  T* const tile_memory = reinterpret_cast<T*>(shared_memory);  // [at_once][shared_pixels][16]
  const int pixels = shared_pixels(s);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32,
            warps = grouped_threads / 32;
  float* const sums = reinterpret_cast<float*>(shared_memory + static_cast<std::size_t>(pixels) * s.at_once *
                                                                   block_channels * sizeof(T)) +
                      warp * tile_pixels * block_channels;
  const int first = static_cast<int>(blockIdx.x) * s.rows,
            first_block = static_cast<int>(blockIdx.y) * s.at_once;
  const T* image = input + static_cast<std::size_t>(blockIdx.z) * s.height * s.width * s.channels;
  T* image_output = output + static_cast<std::size_t>(blockIdx.z) * s.out_height * s.out_width * s.channels;

  // Neighbouring threads take neighbouring eights of a pixel's channels.
  using Eight = Pack<T, 8>;
  const int eights = 2 * s.at_once;
  for (int i = static_cast<int>(threadIdx.x); i < pixels * eights; i += grouped_threads) {
    const int index = i / eights, eight = i % eights;
    const int pixel = source_pixel(s, first, index);
    Eight value{};
    if (pixel >= 0)
      value = *reinterpret_cast<const Eight*>(image + static_cast<std::size_t>(pixel) * s.channels +
                                              first_block * block_channels + eight * 8);
    *reinterpret_cast<Eight*>(tile_memory +
                              (static_cast<std::size_t>(eight / 2) * pixels + index) * block_channels +
                              eight % 2 * 8) = value;
  }
  __syncthreads();

  const int mine = warp % s.at_once;
  const T* const channel_block = tile_memory + static_cast<std::size_t>(mine) * pixels * block_channels;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::row_major> taps[grouped_taps];
#pragma unroll
  for (int tap = 0; tap < grouped_taps; ++tap)
    wmma::load_matrix_sync(taps[tap], weights + weight_index(first_block + mine, tap, 0, 0), block_channels);

  const int channel = (first_block + mine) * block_channels + lane % 2 * 8;
  for (int tile = warp / s.at_once; tile < tiles(s); tile += warps / s.at_once) {
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
    wmma::fill_fragment(sum, 0.0f);
#pragma unroll
    for (int tap = 0; tap < grouped_taps; ++tap) {
      wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> under;
      wmma::load_matrix_sync(
          under, channel_block + static_cast<std::size_t>(tap_pixel(s, tile, tap)) * block_channels,
          static_cast<unsigned>(s.stride) * block_channels);
      wmma::mma_sync(sum, under, taps[tap], sum);
    }
    wmma::store_matrix_sync(sums, sum, block_channels, wmma::mem_row_major);
    __syncwarp();
    const int pixel = output_pixel(s, first, tile, lane / 2);
    if (pixel >= 0) {
      Eight value;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float x = sums[lane / 2 * block_channels + lane % 2 * 8 + i] + bias[channel + i];
        value.values[i] = from_float<T>(relu && x < 0 ? 0 : x);
      }
      *reinterpret_cast<Eight*>(image_output + static_cast<std::size_t>(pixel) * s.channels + channel) =
          value;
    }
    __syncwarp();
  }
}

template <typename T>
__global__ void __launch_bounds__(grouped_threads)
    grouped_kernel(GroupedShape s, const T* input, const T* weights, const float* bias, bool relu,
                   T* output) {
  if constexpr (multiplies<T>())
    grouped_block(s, input, weights, bias, relu, output);
  else
    __trap();
}

// A newer card runs what was compiled for an older one, trap and all.
bool multiplies_bfloat16() {
  cudaFuncAttributes kernel{};
  if (cudaFuncGetAttributes(&kernel, grouped_kernel<__nv_bfloat16>) != cudaSuccess) cudaGetLastError();
  return kernel.ptxVersion >= 80;
}

template <typename T>
const char* grouped(const GroupedShape& s, const void* input, const void* weights, const float* bias,
                    bool relu, void* output, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((s.out_height + s.rows - 1) / s.rows),
                  static_cast<unsigned>(s.channels / (block_channels * s.at_once)),
                  static_cast<unsigned>(s.images));
  return launch(grouped_kernel<T>, grid, grouped_threads, shared_bytes(s), stream, s,
                static_cast<const T*>(input), static_cast<const T*>(weights), bias, relu,
                static_cast<T*>(output));
}

}  // namespace

const char* run_epilogue(Number number, void* data, const float* bias, const void* residual,
                         std::int64_t pixels, int channels, bool relu, cudaStream_t stream) {
  switch (number) {
    case Number::float32: return epilogue<float>(data, bias, residual, pixels, channels, relu, stream);
    case Number::float16: return epilogue<__half>(data, bias, residual, pixels, channels, relu, stream);
    case Number::bfloat16:
      return epilogue<__nv_bfloat16>(data, bias, residual, pixels, channels, relu, stream);
  }
  return "no such number format";
}

const char* run_max_pool(Number number, const PoolShape& shape, const void* input, void* output,
                         cudaStream_t stream) {
  switch (number) {
    case Number::float32: return max_pool<float>(shape, input, output, stream);
    case Number::float16: return max_pool<__half>(shape, input, output, stream);
    case Number::bfloat16: return max_pool<__nv_bfloat16>(shape, input, output, stream);
  }
  return "no such number format";
}

const char* run_grouped(Number number, const GroupedShape& shape, const void* input, const void* weights,
                        const float* bias, bool relu, void* output, cudaStream_t stream) {
  if (shape.rows < 1) return "no row of the image fits in shared memory";
  if (shape.images > 65535) return "more than 65535 images";
  if (number == Number::float16) return grouped<__half>(shape, input, weights, bias, relu, output, stream);
  if (number == Number::float32 || !multiplies_bfloat16()) return "these tensor cores lack the number format";
  return grouped<__nv_bfloat16>(shape, input, weights, bias, relu, output, stream);
}

}  // namespace swsl::cuda
