// The functions of nvJPEG that are used. They are found at run time, or replaced by a test.
#pragma once

#include <cuda_runtime_api.h>
// After CUDA's header.
#include <nvjpeg.h>

namespace swsl {

struct NvjpegFunctions {
  decltype(&nvjpegCreateEx) create;
  decltype(&nvjpegDestroy) destroy;
  decltype(&nvjpegJpegStateCreate) create_state;
  decltype(&nvjpegJpegStateDestroy) destroy_state;
  decltype(&nvjpegJpegStreamCreate) create_header;
  decltype(&nvjpegJpegStreamDestroy) destroy_header;
  decltype(&nvjpegJpegStreamParseHeader) parse_header;
  decltype(&nvjpegDecodeBatchedSupported) batched_supported;
  decltype(&nvjpegDecodeBatchedInitialize) begin_batches;
  decltype(&nvjpegDecodeBatched) decode_batch;
  cudaError_t (*synchronize)(cudaStream_t);
};

// Those of the library. Throws std::invalid_argument, about the option `nvjpeg`, where it cannot be loaded.
const NvjpegFunctions& nvjpeg_functions();

}  // namespace swsl
