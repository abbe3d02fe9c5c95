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
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureUnsupported = 900
};
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);

// Of exactly this size, for the address sanitizer.
cudaError_t cudaMallocManaged(void** memory, std::size_t size);
cudaError_t cudaFree(void* memory);
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }

// What follows until the next structure is in engine.cpp.
using cudaEvent_t = struct CUevent_st*;
using cudaGraph_t = struct CUgraph_st*;
using cudaGraphExec_t = struct CUgraphExec_st*;
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
constexpr unsigned cudaStreamNonBlocking = 1, cudaGraphInstantiateFlagAutoFreeOnLaunch = 1;
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end);

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

// One at a time. If `recorder` is set it is given what launches the kernel again.
cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& kernel);
inline void (*recorder)(const std::function<void()>& work) = nullptr;

}  // namespace cuda_on_cpu

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  const std::function<void()> with_arguments = [kernel, ... values = Parameters(arguments)] {
    kernel(values...);
  };
  if (cuda_on_cpu::recorder != nullptr)
    cuda_on_cpu::recorder(
        [config = *config, with_arguments] { cuda_on_cpu::launch(config, with_arguments); });
  return cuda_on_cpu::launch(*config, with_arguments);
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
