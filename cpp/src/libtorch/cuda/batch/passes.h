// The two kernels that make a batch on a GPU.
#pragma once

#include <cuda_runtime_api.h>

#include "libtorch/cuda/batch/packed.h"

namespace swsl::resample {

// Enqueues both on the stream of the current device; every pointer of `batch` is the GPU's, and
// `first_pass_blocks` what `arrange` returned. Returns what went wrong, null if nothing did.
const char* run_passes(const PackedBatch& batch, std::int64_t first_pass_blocks, cudaStream_t stream);

}  // namespace swsl::resample
