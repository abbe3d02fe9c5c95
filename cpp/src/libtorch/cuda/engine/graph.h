// CUDA graphs, and how long work keeps a GPU busy.
#pragma once

#include <algorithm>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <tuple>
#include <utility>

#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

#include "libtorch/cuda/check.h"

namespace swsl::cuda {

// A graph that the caller is capturing would keep addresses that the engine gives to others later.
inline void refuse_capture(cudaStream_t caller) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(caller, &status));
  if (status != cudaStreamCaptureStatusNone)
    throw std::runtime_error(
        "a CUDA graph is being captured on the caller's stream, and a forward pass, which runs in graphs of "
        "its own, cannot become part of it; call it outside");
}

// What `work` enqueues on the current stream, an OwnStream, instead of being run; its memory comes from the
// pool, which is gone for good with its last graph.
//
// Not at::cuda::CUDAGraph, which until torch 2.13 stops every thread's use of the device's random numbers
// while it captures, and leaves the allocator and these numbers unusable where a capture fails.
class Graph {
 public:
  // Throws what `work` throws, or what made its operations no graph; the stream can be used again in either
  // case.
  template <typename Work>
  Graph(at::cuda::MempoolId_t pool, const Work& work)
      : device_(c10::cuda::getCurrentCUDAStream().device_index()),
        stream_(c10::cuda::getCurrentCUDAStream()),
        pool_(pool) {
    auto* const allocator = c10::cuda::CUDACachingAllocator::get();
    const auto times_full = [&] { return allocator->getDeviceStats(device_).num_ooms; };
    const auto full_before = times_full();
    forget_workspaces();
    allocator->beginAllocateToPool(device_, pool_,
                                   [stream = stream_](cudaStream_t other) { return other == stream; });
    cudaGraph_t graph = nullptr;
    std::exception_ptr failure;
    // Other threads may go on using CUDA.
    cudaError_t error = cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal);
    if (error == cudaSuccess) {
      mark_begin(allocator);
      try {
        work();
      } catch (...) {
        failure = std::current_exception();
      }
      error = cudaStreamEndCapture(stream_, &graph);
      mark_end(allocator);
    }
    allocator->endAllocateToPool(device_, pool_);
    if (error == cudaSuccess && !failure)
      error = cudaGraphInstantiateWithFlags(&graph_, graph, cudaGraphInstantiateFlagAutoFreeOnLaunch);
    if (graph != nullptr) cudaGraphDestroy(graph);
    if (error == cudaSuccess && !failure) return;
    cudaGetLastError();
    forget_workspaces();
    allocator->releasePool(device_, pool_);
    // Libraries that find no memory try what a capture does not survive, and then tell of that.
    TORCH_CHECK_WITH(OutOfMemoryError, error != cudaErrorMemoryAllocation && times_full() == full_before,
                     "no memory for a CUDA graph");
    if (failure) std::rethrow_exception(failure);
    check(error);
  }

  ~Graph() {
    cudaGraphExecDestroy(graph_);
    forget_workspaces();
    c10::cuda::CUDACachingAllocator::get()->releasePool(device_, pool_);
  }
  Graph(const Graph&) = delete;

  void replay() const { check(cudaGraphLaunch(graph_, c10::cuda::getCurrentCUDAStream())); }

 private:
  // cuBLAS's memory for this stream then comes from the graph's pool; memory from elsewhere could be given
  // back under the graph.
  void forget_workspaces() const {
#if !__has_include(<ATen/cuda/CUDABlasWorkspace.h>)  // where it is, each call has its own
    for (auto* workspaces :
         {&at::cuda::cublas_handle_stream_to_workspace(), &at::cuda::cublaslt_handle_stream_to_workspace()}) {
      const std::unique_lock lock(workspaces->mutex);
      std::erase_if(workspaces->map, [this](const auto& entry) {
        return std::get<1>(entry.first) == static_cast<void*>(stream_);
      });
    }
#endif
  }

  // What later releases of torch want to be told.
  template <typename Allocator>
  void mark_begin(Allocator* allocator) const {
    if constexpr (requires { allocator->markCaptureBegin(device_); }) allocator->markCaptureBegin(device_);
  }
  template <typename Allocator>
  void mark_end(Allocator* allocator) const {
    if constexpr (requires { allocator->markCaptureEnd(device_); }) allocator->markCaptureEnd(device_);
  }

  const c10::DeviceIndex device_;
  const cudaStream_t stream_;
  const at::cuda::MempoolId_t pool_;
  cudaGraphExec_t graph_ = nullptr;
};

// Seconds that the GPU takes for work on the current stream. Several runs of it are timed as one graph, for
// between layers that are launched one by one a GPU waits for the CPU, and in the engine's graphs it does
// not.
class GpuTimer {
 public:
  GpuTimer() : stream_(c10::cuda::getCurrentCUDAStream()) {
    check(cudaEventCreate(&begin_));
    if (const auto error = cudaEventCreate(&end_); error != cudaSuccess) {
      cudaEventDestroy(begin_);
      check(error);
    }
  }
  ~GpuTimer() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  GpuTimer(const GpuTimer&) = delete;

  // The fastest of a few measurements. `work` must have run before, so that libraries have loaded what they
  // need.
  template <typename Work>
  double operator()(const Work& work) {
    constexpr int repeats = 10;
    try {
      last_ = std::make_unique<Graph>(last_ ? pool_ : pool_ = at::cuda::graph_pool_handle(), [&] {
        for (int i = 0; i < repeats; ++i) work();
      });
    } catch (const std::exception&) {  // work that no graph can hold, or no memory for it
      c10::cuda::CUDACachingAllocator::emptyCache();
      return fastest(work);
    }
    return fastest([&] { last_->replay(); }) / repeats;
  }

 private:
  template <typename Work>
  double fastest(const Work& work) {
    constexpr int runs = 5;
    float best = std::numeric_limits<float>::infinity();
    for (int run = 0; run < runs; ++run) {
      check(cudaEventRecord(begin_, stream_));
      work();
      check(cudaEventRecord(end_, stream_));
      check(cudaEventSynchronize(end_));
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, begin_, end_));
      best = std::min(best, milliseconds);
    }
    return best * 1e-3;
  }

  c10::cuda::CUDAStream stream_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  at::cuda::MempoolId_t pool_{};
  std::unique_ptr<Graph> last_;  // kept until the next one is there, and the pool with it
};

}  // namespace swsl::cuda
