#include "engine/cuda/cuda_engine.h"

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <stdexcept>

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/Event.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "engine/cpu/graph_reader.h"
#include "engine/cuda/network.h"
#include "engine/cuda/parts.h"

namespace swsl {
namespace {

using namespace cuda;

// More than a stream of one image size ever needs: 1, 2, 3, 4, 6, … 256.
constexpr std::size_t most_buckets = 24;

// Neither gradients nor inference tensors, whichever mode the caller is in: what is kept here is written again and again, which
// an inference tensor allows in inference mode only.
struct PlainMode {
  const c10::InferenceMode normal{false};
  const c10::AutoGradMode no_grad{false};
};

class CudaEngine final : public Engine {
 public:
  CudaEngine(const FrozenModel& model, cpu::FusedNetwork network, const EngineOptions& options)
      : device_(options.device),
        dtype_(options.dtype),
        max_batch_(options.max_batch),
        most_(options.max_batch),
        stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, options.device.index())) {
    info_.name = "cuda";
    info_.device = options.device.str();
    info_.dtype = options.tf32 ? "tf32" : dtype_name(options.dtype);
    const PlainMode mode;
    const c10::cuda::CUDAStreamGuard guard(stream_);
    network_.emplace(std::move(network), device_, dtype_, options.tf32);
    // TF32 has float16's ten bits of mantissa, and so its tolerance.
    info_.golden = model.check_golden([&](const at::Tensor& batch) { return forward(batch); }, options.tf32 ? at::kHalf : dtype_);
    const auto& shape = model.metadata().golden.shape;
    in_parts<c10::OutOfMemoryError>(
        max_batch_, most_, [&](std::int64_t, int size) { bucket_for(size, shape[2], shape[3]); }, [&] { give_back(); });
    info_.reason = describe(shape[2], shape[3]);
  }

  ~CudaEngine() override {
    try {
      const c10::cuda::CUDAStreamGuard guard(stream_);
      stream_.synchronize();
      buckets_.clear();
    } catch (const std::exception&) {  // a device that has failed cannot be waited for
    }
  }

  at::Tensor forward(const at::Tensor& batch) override { return compute(batch, &Outputs::logits); }
  at::Tensor embed(const at::Tensor& batch) override { return compute(batch, &Outputs::features); }
  const EngineInfo& info() const override { return info_; }

  std::vector<LayerTime> profile(const at::Tensor& batch) override {
    check(batch);
    if (batch.size(0) > max_batch_)
      throw std::invalid_argument("batch: expected at most " + std::to_string(max_batch_) + " images to profile (max_batch), got " +
                                  std::to_string(batch.size(0)));
    if (batch.size(0) == 0) return {};
    const PlainMode mode;
    const std::lock_guard turn(turn_);
    const c10::cuda::CUDAGuard guard(device_);
    after_caller();
    const c10::cuda::CUDAStreamGuard streams(stream_);
    auto& bucket = bucket_for(static_cast<int>(batch.size(0)), batch.size(2), batch.size(3));
    const auto input = batch.to(device_).to(dtype_).contiguous(at::MemoryFormat::ChannelsLast);
    network_->run(input, bucket.methods);
    std::vector<LayerTime> times;
    network_->run(input, bucket.methods, &times);
    stream_.synchronize();
    return times;
  }

 private:
  struct Bucket {
    int size;
    std::int64_t height, width;
    Methods methods;
    at::Tensor input;
    Outputs outputs;
    std::unique_ptr<at::cuda::CUDAGraph> graph;  // null where capturing failed
  };

  void check(const at::Tensor& batch) const {
    if (batch.dim() != 4 || batch.size(1) != 3 || !batch.is_floating_point()) {
      std::string found = c10::toString(batch.scalar_type());
      for (const auto n : batch.sizes()) found += ' ' + std::to_string(n);
      throw std::invalid_argument("batch: expected a floating-point tensor N×3×height×width, got " + found);
    }
    if (getpid() != process_)
      throw std::runtime_error("this runner was made before the process forked, and CUDA does not survive that; "
                               "make the runner in the process that uses it");
  }

  at::Tensor compute(const at::Tensor& batch, at::Tensor Outputs::*which) {
    check(batch);
    const PlainMode mode;
    const std::int64_t count = batch.size(0), height = batch.size(2), width = batch.size(3);
    const std::lock_guard turn(turn_);
    const c10::cuda::CUDAGuard guard(device_);
    const auto caller = c10::cuda::getCurrentCUDAStream();
    after_caller();
    at::Tensor result;
    const auto part = [&](std::int64_t begin, int size) {
      Bucket& bucket = bucket_for(std::max(size, 1), height, width);
      const at::Tensor& rows = bucket.outputs.*which;
      if (!result.defined()) result = at::empty({count, rows.size(1)}, rows.options());
      if (size == 0) return;
      // First to the GPU, which converts faster than the CPU. Rows of the input behind `size` keep what they had: nobody reads
      // what becomes of them.
      bucket.input.narrow(0, 0, size).copy_(batch.narrow(0, begin, size).to(device_));
      if (bucket.graph)
        bucket.graph->replay();
      else
        bucket.outputs = network_->run(bucket.input, bucket.methods);
      result.narrow(0, begin, size).copy_((bucket.outputs.*which).narrow(0, 0, size));
    };
    try {
      const c10::cuda::CUDAStreamGuard streams(stream_);
      if (count == 0) part(0, 0);
      in_parts<c10::OutOfMemoryError>(count, most_, part, [&] { give_back(); });
    } catch (const c10::OutOfMemoryError&) {
      throw std::runtime_error("out of memory on " + info_.device + ": not even one image of " + std::to_string(height) + " × " +
                               std::to_string(width) + " (height × width) fits beside what the GPU holds already");
    }
    c10::Event done(c10::DeviceType::CUDA);
    done.record(stream_);
    done.block(caller);
    result.record_stream(caller);
    if (batch.device() == device_) batch.record_stream(stream_);
    return result;
  }

  // Work that the caller has enqueued, such as what makes the batch, comes first.
  void after_caller() {
    c10::Event ready(c10::DeviceType::CUDA);
    ready.record(c10::cuda::getCurrentCUDAStream(device_.index()));
    ready.block(stream_);
  }

  // On `stream_`, with turn_ held. The reference is good until the next call. A size that comes for the first time is measured and
  // captured, which takes a second or more.
  Bucket& bucket_for(int wanted, std::int64_t height, std::int64_t width) {
    const int size = bucket_size(wanted, std::max(most_.load(), wanted));
    for (auto it = buckets_.begin(); it != buckets_.end(); ++it)
      if (it->size == size && it->height == height && it->width == width) {
        buckets_.splice(buckets_.begin(), buckets_, it);
        return buckets_.front();
      }
    if (buckets_.size() == most_buckets) {
      stream_.synchronize();
      buckets_.pop_back();
    }
    Bucket bucket{size, height, width, {}, {}, {}, nullptr};
    bucket.input = at::randn({size, 3, height, width}, at::TensorOptions(device_).dtype(dtype_)).contiguous(at::MemoryFormat::ChannelsLast);
    bucket.methods = network_->choose(bucket.input, notes_);
    bucket.outputs = network_->run(bucket.input, bucket.methods);  // libraries load what they need: not while capturing
    stream_.synchronize();
    capture(bucket);
    buckets_.push_front(std::move(bucket));
    return buckets_.front();
  }

  // The graphs share one pool of memory, for only one runs at a time. Other threads may go on using CUDA meanwhile.
  void capture(Bucket& bucket) {
    auto graph = std::make_unique<at::cuda::CUDAGraph>();
    try {
      graph->capture_begin(pool_, cudaStreamCaptureModeThreadLocal);
    } catch (const std::exception& error) {
      without_graph(error);
      return;
    }
    Outputs outputs;
    std::exception_ptr failure;
    try {
      outputs = network_->run(bucket.input, bucket.methods);
    } catch (...) {
      failure = std::current_exception();
    }
    try {
      graph->capture_end();
      if (failure) std::rethrow_exception(failure);
      bucket.outputs = std::move(outputs);
      bucket.graph = std::move(graph);
    } catch (const std::exception& error) {
      cudaGetLastError();
      const bool full = [&] {
        try {
          if (failure) std::rethrow_exception(failure);
        } catch (const c10::OutOfMemoryError&) {
          return true;
        } catch (...) {
        }
        return false;
      }();
      if (full) std::rethrow_exception(failure);
      without_graph(error);
    }
  }

  void without_graph(const std::exception& error) {
    const std::string message = error.what();
    notes_ = "; without CUDA graphs: " + message.substr(0, std::min<std::size_t>(message.find('\n'), 200)) + notes_;
  }

  void give_back() {
    stream_.synchronize();
    buckets_.clear();
    c10::cuda::CUDACachingAllocator::emptyCache();
  }

  std::string describe(std::int64_t height, std::int64_t width) {
    const Bucket& bucket = bucket_for(most_, height, width);
    std::map<std::string, int> counts;
    for (const auto method : network_->convolutions(bucket.methods)) ++counts[name(method)];
    std::string text = "fused layers, channels-last, a CUDA graph for each batch size; by measurement at batch " + std::to_string(bucket.size) + ":";
    for (const auto& [method, count] : counts) text += ' ' + std::to_string(count) + " × " + method + ',';
    text.back() = ' ';
    text.pop_back();
    if (most_ < max_batch_)
      text += "; batches are cut into parts of " + std::to_string(most_) + ", for " + std::to_string(max_batch_) + " images do not fit in the memory";
    return text + notes_;
  }

  const pid_t process_ = getpid();
  const at::Device device_;
  const at::ScalarType dtype_;
  const int max_batch_;
  std::atomic<int> most_;  // images computed at a time; less than max_batch_ after running out of memory
  const c10::cuda::CUDAStream stream_;
  const at::cuda::MempoolId_t pool_ = at::cuda::graph_pool_handle();
  std::optional<DeviceNetwork> network_;
  std::mutex turn_;            // held while work is enqueued
  std::list<Bucket> buckets_;  // the last used first
  std::string notes_;
  EngineInfo info_;
};

}  // namespace

std::unique_ptr<Engine> make_cuda_engine(const FrozenModel& model, const EngineOptions& options, std::string& why) {
  try {
    cpu::FusedNetwork network = cpu::read_model(model);
    auto engine = std::make_unique<CudaEngine>(model, std::move(network), options);
    const auto& golden = engine->info().golden;
    if (golden.passed()) return engine;
    char errors[160];
    std::snprintf(errors, sizeof errors, "the CUDA engine failed the golden check: relative error of the logits %.3g, expected at most %.3g",
                  golden.relative_error, golden.tolerance);
    why = errors;
  } catch (const cpu::UnsupportedNetwork& error) {
    why = std::string("the CUDA engine has no ") + error.what();
  } catch (const c10::OutOfMemoryError& error) {
    throw std::runtime_error("out of memory on " + options.device.str() + ": the network does not fit beside what the GPU holds already");
  } catch (const c10::Error& error) {
    why = std::string("the CUDA engine failed: ") + error.what_without_backtrace();
    why.resize(std::min<std::size_t>(why.find('\n'), std::min<std::size_t>(why.size(), 300)));
  }
  return nullptr;
}

}  // namespace swsl
