// See ../../engine.h: streams that compute at once.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include "cuda_runtime_api.h"

namespace c10::cuda {

class CUDAStream {
 public:
  explicit CUDAStream(cudaStream_t stream) : stream_(stream) {}
  operator cudaStream_t() const { return stream_; }
  operator c10::Stream() const {
    return c10::Stream(c10::Stream::UNSAFE, c10::Device(c10::DeviceType::CUDA, 0),
                       static_cast<c10::StreamId>(reinterpret_cast<std::intptr_t>(stream_)));
  }
  c10::DeviceIndex device_index() const { return -1; }
  void synchronize() const {}

 private:
  cudaStream_t stream_;
};

inline thread_local cudaStream_t current_stream = nullptr;

inline CUDAStream getCurrentCUDAStream(c10::DeviceIndex = -1) { return CUDAStream(current_stream); }
inline CUDAStream getStreamFromExternal(cudaStream_t stream, c10::DeviceIndex) { return CUDAStream(stream); }

}  // namespace c10::cuda
