// See ../../engine.h.
#pragma once

#include <utility>

#include <c10/cuda/CUDAStream.h>

namespace c10::cuda {

struct CUDAGuard {
  explicit CUDAGuard(c10::DeviceIndex) {}
  explicit CUDAGuard(c10::Device) {}
  CUDAGuard(const CUDAGuard&) = delete;
  ~CUDAGuard() {}
};

class CUDAStreamGuard {
 public:
  explicit CUDAStreamGuard(cudaStream_t stream) : before_(std::exchange(current_stream, stream)) {}
  CUDAStreamGuard(const CUDAStreamGuard&) = delete;
  ~CUDAStreamGuard() { current_stream = before_; }

 private:
  const cudaStream_t before_;
};

}  // namespace c10::cuda
