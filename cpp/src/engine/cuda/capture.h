// CUDA graphs, and how long work keeps a GPU busy.
#pragma once

#include <algorithm>
#include <exception>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

namespace swsl::cuda {

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// What `work` enqueues on the current stream becomes `graph`, instead of being run. Other threads may go on using CUDA meanwhile.
// Throws what `work` throws, or what made its operations no graph; the stream can be used again in either case.
template <typename Work>
void capture(at::cuda::CUDAGraph& graph, at::cuda::MempoolId_t pool, const Work& work) {
  graph.capture_begin(pool, cudaStreamCaptureModeThreadLocal);
  std::exception_ptr failure;
  try {
    work();
  } catch (...) {
    failure = std::current_exception();
  }
  try {
    graph.capture_end();
  } catch (...) {
    cudaGetLastError();
    if (!failure) throw;
  }
  if (failure) std::rethrow_exception(failure);
}

// Seconds that the GPU takes for work on the current stream. Several runs of it are timed as one graph, for between layers that are
// launched one by one a GPU waits for the CPU, and in the engine's graphs it does not.
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

  // The fastest of a few measurements. `work` must have run before, so that libraries have loaded what they need.
  template <typename Work>
  double operator()(const Work& work) {
    constexpr int repeats = 10;
    auto graph = std::make_unique<at::cuda::CUDAGraph>();
    try {
      capture(*graph, pool_, [&] {
        for (int i = 0; i < repeats; ++i) work();
      });
    } catch (const c10::OutOfMemoryError&) {
      throw;
    } catch (const std::exception&) {  // work that no graph can hold
      return fastest(work);
    }
    last_ = std::move(graph);
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
  const at::cuda::MempoolId_t pool_ = at::cuda::graph_pool_handle();
  std::unique_ptr<at::cuda::CUDAGraph> last_;  // kept until the next one is there: a pool without a graph is gone for good
};

}  // namespace swsl::cuda
