#include "engine.h"

#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include "c10/cuda/CUDAStream.h"

struct CUgraph_st {
  std::vector<std::function<void()>> work;
};

namespace cuda_on_cpu {
namespace {

constexpr auto recording = c10::DispatchKey::TESTING_ONLY_GenericMode;

thread_local std::unique_ptr<CUgraph_st> captured;
thread_local bool timing = false;  // nobody reads what is launched meanwhile

// An operator of LibTorch runs, and again at each launch, into the memory that its results had.
void record_operator(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard no_recording(recording);
  const auto inputs = static_cast<std::ptrdiff_t>(operation.schema().arguments().size());
  const torch::jit::Stack before(stack->end() - inputs, stack->end());
  operation.callBoxed(stack);
  const auto results = static_cast<std::ptrdiff_t>(operation.schema().returns().size());
  const torch::jit::Stack after(stack->end() - results, stack->end());
  record([operation, before, after] {
    torch::jit::Stack again = before;
    operation.callBoxed(&again);
    for (std::size_t i = 0; i < after.size(); ++i)
      if (after[i].isTensor() && after[i].toTensor().defined()) {
        const at::Tensor to = after[i].toTensor(), from = again[i].toTensor();
        if (to.data_ptr() != from.data_ptr()) to.copy_(from);
      }
  });
}

void need_memory(const at::Tensor& result) {
  if (result.numel() <= state().most_values) return;
  ++state().times_full;
  TORCH_CHECK_WITH(OutOfMemoryError, false, "this many values do not fit");
}

// In float32 and rounded once, as cuDNN does.
at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, at::IntArrayRef stride, at::IntArrayRef padding,
                       at::IntArrayRef dilation, std::int64_t groups, const at::Tensor& added, bool relu) {
  expect(!c10::GradMode::is_enabled() && !c10::InferenceMode::is_enabled(), "in a mode of the caller's");
  const auto floats = [](const at::Tensor& tensor) { return tensor.to(at::kFloat); };
  at::Tensor result = at::convolution(floats(input), floats(weight), bias ? floats(*bias) : at::Tensor(),
                                      stride, padding, dilation, /*transposed=*/false, {0, 0}, groups);
  need_memory(result);
  if (added.defined()) result += floats(added);
  if (relu) result.relu_();
  return result.to(input.scalar_type()).contiguous(at::MemoryFormat::ChannelsLast);
}

at::Tensor cudnn_convolution(const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef padding,
                             at::IntArrayRef stride, at::IntArrayRef dilation, std::int64_t groups, bool,
                             bool, bool) {
  return convolution(input, weight, std::nullopt, stride, padding, dilation, groups, {}, false);
}

at::Tensor fused(const at::Tensor& result) {
  TORCH_CHECK(state().has_fused, "no engine of cuDNN for this\nand more");
  return state().fused_is_wrong ? result + 1 : result;
}

at::Tensor cudnn_convolution_relu(const at::Tensor& input, const at::Tensor& weight,
                                  const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                                  at::IntArrayRef padding, at::IntArrayRef dilation, std::int64_t groups) {
  return fused(convolution(input, weight, bias, stride, padding, dilation, groups, {}, true));
}

at::Tensor cudnn_convolution_add_relu(const at::Tensor& input, const at::Tensor& weight,
                                      const at::Tensor& added, const std::optional<at::Scalar>&,
                                      const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                                      at::IntArrayRef padding, at::IntArrayRef dilation,
                                      std::int64_t groups) {
  return fused(convolution(input, weight, bias, stride, padding, dilation, groups, added, true));
}

void record_stream(at::Tensor&, c10::Stream) {}

struct Events final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return getDevice(); }
  c10::Device getDevice() const override { return {c10::DeviceType::CUDA, 0}; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::cuda::getCurrentCUDAStream(); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {
    static int any;
    *event = &any;
  }
  void block(void*, const c10::Stream&) const override {}
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};

}  // namespace

State& state() {
  static State state;
  return state;
}

void expect(bool condition, const char* message) {
  if (!condition) throw std::logic_error(message);
}

cudaStream_t current() { return c10::cuda::current_stream; }
bool capturing() { return captured != nullptr; }
void record(const std::function<void()>& work) {
  if (captured) captured->work.push_back(work);
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, ::cuda_on_cpu::Events)
}

TORCH_LIBRARY_IMPL(_, TESTING_ONLY_GenericMode, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&record_operator>());
}

TORCH_LIBRARY_IMPL(aten, CPU, m) {
  m.impl("cudnn_convolution", &cudnn_convolution);
  m.impl("cudnn_convolution_relu", &cudnn_convolution_relu);
  m.impl("cudnn_convolution_add_relu", &cudnn_convolution_add_relu);
  m.impl("record_stream", &record_stream);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  static std::atomic<std::intptr_t> made = 0;
  *stream = reinterpret_cast<cudaStream_t>(++made);
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = capturing() ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  expect(stream == current() && stream != nullptr && !capturing(), "the wrong stream is captured");
  if (!state().can_capture) return cudaErrorStreamCaptureUnsupported;
  ++state().captures;
  captured = std::make_unique<CUgraph_st>();
  recorder = &record;
  c10::impl::tls_set_dispatch_key_included(recording, true);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  c10::impl::tls_set_dispatch_key_included(recording, false);
  --state().captures;
  *graph = captured.release();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = reinterpret_cast<cudaGraphExec_t>(new CUgraph_st(*graph));
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete reinterpret_cast<CUgraph_st*>(exec);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  expect(stream == current() && !capturing(), "a graph is launched elsewhere");
  if (timing) return cudaSuccess;
  ++state().replays;
  for (const auto& work : reinterpret_cast<CUgraph_st*>(exec)->work) work();
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  static int any;
  *event = reinterpret_cast<cudaEvent_t>(&any);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
  timing = !timing;
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }

// At random, so that every way is chosen for some layer.
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  static std::mt19937 random;
  *milliseconds = std::uniform_real_distribution<float>(1, 2)(random);
  return cudaSuccess;
}
