// See ../../engine.h: it counts what is asked of it.
#pragma once

#include <functional>

#include <c10/core/Device.h>

#include "ATen/cuda/CUDAGraph.h"
#include "engine.h"

namespace c10::cuda::CUDACachingAllocator {

struct DeviceStats {
  int num_ooms;
};

struct Allocator {
  DeviceStats getDeviceStats(c10::DeviceIndex) const { return {cuda_on_cpu::state().times_full.load()}; }
  void beginAllocateToPool(c10::DeviceIndex, at::cuda::MempoolId_t,
                           const std::function<bool(cudaStream_t)>& filter) {
    cuda_on_cpu::expect(filter(cuda_on_cpu::current()), "the pool is of another stream");
    ++cuda_on_cpu::state().pools;
  }
  void endAllocateToPool(c10::DeviceIndex, at::cuda::MempoolId_t) {}
  void releasePool(c10::DeviceIndex, at::cuda::MempoolId_t) { --cuda_on_cpu::state().pools; }
};

inline Allocator* get() {
  static Allocator allocator;
  return &allocator;
}

inline void emptyCache() {
  cuda_on_cpu::expect(cuda_on_cpu::state().captures == 0, "memory is given back while a graph is captured");
}

}  // namespace c10::cuda::CUDACachingAllocator
