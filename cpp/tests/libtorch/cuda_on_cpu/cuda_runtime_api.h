// As much of CUDA as our kernels use, on the CPU. With this folder before CUDA's own, the very .cu files
// compile as C++; tests run them where there is no GPU, and sanitizers watch. This file stands for the header
// of its name and for what nvcc includes unasked.
//
// The threads of a block take turns, each until it waits at a barrier or ends, and in an order that every
// round shuffles anew: where a barrier is missing, some thread reads what is not there yet. What traps on a
// GPU and the sanitizers do not see, such as too large a grid or threads of a warp that do not multiply
// together, is an error here too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#define CUDA_ON_CPU 1

#define __global__
#define __device__
#define __host__
#define __shared__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(threads)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
extern dim3 gridDim, blockDim, blockIdx, threadIdx;

using cudaStream_t = struct CUstream_st*;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719
};
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);

// Of exactly this size, for the address sanitizer.
cudaError_t cudaMallocManaged(void** memory, std::size_t size);
cudaError_t cudaFree(void* memory);
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};

struct cudaFuncAttributes {
  int ptxVersion;
};

void __syncthreads();
void __syncwarp();
void __trap();

namespace cuda_on_cpu {

inline int ptx_version = 90;

// The first message of a launch becomes its error. To go on does no harm.
void fail(const char* message);

// For operations of a warp: all its threads must take part, with the same arguments, of which `pointer` is a
// multiple of `alignment`.
void together(const void* pointer, std::size_t stride_bytes, std::size_t alignment);

cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& kernel);

}  // namespace cuda_on_cpu

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  return cuda_on_cpu::launch(*config, [&] { kernel(arguments...); });
}

template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  attributes->ptxVersion = cuda_on_cpu::ptx_version;
  return cudaSuccess;
}

template <typename T>
T __ldg(const T* at) {
  if (reinterpret_cast<std::uintptr_t>(at) % sizeof(T) != 0) cuda_on_cpu::fail("__ldg: misaligned address");
  return *at;
}

inline std::uint32_t __funnelshift_r(std::uint32_t low, std::uint32_t high, std::uint32_t shift) {
  return static_cast<std::uint32_t>((static_cast<std::uint64_t>(high) << 32 | low) >> (shift & 31));
}
