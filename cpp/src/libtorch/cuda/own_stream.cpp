#include "libtorch/cuda/own_stream.h"

#include <map>
#include <mutex>
#include <vector>

#include <c10/cuda/CUDAGuard.h>

#include "libtorch/cuda/check.h"

namespace swsl {
namespace {

struct Idle {
  std::mutex mutex;
  std::map<c10::DeviceIndex, std::vector<c10::cuda::CUDAStream>> streams;
};

// Never destroyed: at exit, runners may still give streams back.
Idle& idle() {
  static auto* const idle = new Idle;
  return *idle;
}

c10::cuda::CUDAStream lend(c10::DeviceIndex device) {
  {
    const std::lock_guard lock(idle().mutex);
    auto& streams = idle().streams[device];
    if (!streams.empty()) {
      const auto stream = streams.back();
      streams.pop_back();
      return stream;
    }
  }
  const c10::cuda::CUDAGuard guard(device);
  cudaStream_t stream = nullptr;
  cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return c10::cuda::getStreamFromExternal(stream, device);
}

}  // namespace

OwnStream::OwnStream(at::Device device) : stream_(lend(device.index())) {}

OwnStream::~OwnStream() {
  const std::lock_guard lock(idle().mutex);
  idle().streams[stream_.device_index()].push_back(stream_);
}

}  // namespace swsl
