// What went wrong on a GPU, as an exception.
#pragma once

#include <stdexcept>
#include <string>

#include <cuda_runtime_api.h>

namespace swsl::cuda {

// `error`: as our kernels' launches return it, null if all went well.
inline void check(const char* error) {
  if (error != nullptr) throw std::runtime_error(std::string("CUDA: ") + error);
}

inline void check(cudaError_t error) {
  if (error != cudaSuccess) check(cudaGetErrorString(error));
}

}  // namespace swsl::cuda
