// Streams that nobody else has. Those of LibTorch's pool are 32 that everybody shares: what another thread
// enqueues on one while a graph is being captured there would become part of the graph.
#pragma once

#include <c10/core/Device.h>
#include <c10/cuda/CUDAStream.h>

namespace swsl {

class OwnStream {
 public:
  explicit OwnStream(at::Device device);
  ~OwnStream();  // the stream is lent again later: libraries keep memory for each that they have seen
  OwnStream(const OwnStream&) = delete;

  c10::cuda::CUDAStream get() const { return stream_; }

 private:
  const c10::cuda::CUDAStream stream_;
};

}  // namespace swsl
