// The GPU engine's own kernels. All enqueue on the stream of the current device and return what went wrong,
// null if nothing did.
#pragma once

#include <cuda_runtime_api.h>

#include "libtorch/cuda/engine/grouped.h"

namespace swsl::cuda {

enum class Number { float32, float16, bfloat16 };

// data (pixels × channels, in place) becomes relu?(data + bias + residual?). `residual` may be null.
const char* run_epilogue(Number number, void* data, const float* bias, const void* residual,
                         std::int64_t pixels, int channels, bool relu, cudaStream_t stream);

struct PoolShape {
  int images, height, width, channels;
  int out_height, out_width;
  int kernel_height, kernel_width, stride_height, stride_width, pad_height, pad_width;
};

// input: images × height × width × channels, output likewise. A NaN in a window is its maximum. Without what
// at::max_pool2d writes beside its output, four times as much: where the maxima were.
const char* run_max_pool(Number number, const PoolShape& shape, const void* input, void* output,
                         cudaStream_t stream);

// float16 or bfloat16, the latter on compute capability 8.0 and later. input: images × height × width ×
// channels, output likewise; weights: pack_grouped, converted.
const char* run_grouped(Number number, const GroupedShape& shape, const void* input, const void* weights,
                        const float* bias, bool relu, void* output, cudaStream_t stream);

}  // namespace swsl::cuda
