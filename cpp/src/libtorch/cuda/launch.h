// How .cu files start their kernels: without <<<…>>>, so that the tests can compile them as C++ too, for the
// CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

namespace swsl {

constexpr std::int64_t most_blocks = 2147483647;  // along x

// Returns what went wrong, null if nothing did.
template <typename... Parameters, typename... Arguments>
const char* launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, std::size_t shared_bytes,
                   cudaStream_t stream, const Arguments&... arguments) {
  const cudaLaunchConfig_t config{grid, threads, shared_bytes, stream, nullptr, 0};
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // or whoever asks next would take it for theirs
  return cudaGetErrorString(error);
}

}  // namespace swsl
