// The GPU engine's own kernels. All enqueue on the stream of the current device and return what went wrong, null if nothing did.
#pragma once

#include <cuda_runtime_api.h>

#include "engine/cuda/grouped.h"

namespace swsl::cuda {

enum class Number { float32, float16, bfloat16 };

// data (pixels × channels, in place) becomes relu?(data + bias + residual?). `residual` may be null.
const char* run_epilogue(Number number, void* data, const float* bias, const void* residual, std::int64_t pixels, int channels, bool relu,
                         cudaStream_t stream);

// float16 or bfloat16, the latter on compute capability 8.0 and later. input: images × height × width × channels, output likewise;
// weights: pack_grouped, converted.
const char* run_grouped(Number number, const GroupedShape& shape, const void* input, const void* weights, const float* bias, bool relu,
                        void* output, cudaStream_t stream);

}  // namespace swsl::cuda
