#include "libtorch/cuda/engine/cuda_engine.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <tuple>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/Event.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "engine/batch_check.h"
#include "engine/plan/fuse.h"
#include "libtorch/cuda/engine/graph.h"
#include "libtorch/cuda/engine/network.h"
#include "libtorch/cuda/own_stream.h"
#include "libtorch/parts.h"
#include "threads/turns.h"

namespace swsl {
namespace {

using namespace cuda;

// More than a stream of one image size ever needs: 1, 2, 3, 4, 6, … 256.
constexpr std::size_t most_buckets = 24;

// Neither gradients nor inference tensors nor automatic casts, whichever mode the caller is in: what is kept
// here is written again and again, which an inference tensor allows in inference mode only.
struct PlainMode {
  const c10::InferenceMode normal{false};
  const c10::AutoGradMode no_grad{false};
  const c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

// Held while measuring and capturing, by all engines: measurements would disturb each other.
std::mutex& building() {
  static std::mutex mutex;
  return mutex;
}

// A batch size of a lane: where its input goes, how its layers are computed, and where its outputs come.
struct Bucket {
  int size;
  std::int64_t height, width;
  Methods methods;
  at::Tensor input;
  TensorOutputs outputs;
  std::unique_ptr<Graph> graph;  // null where capturing failed
};

// A forward pass on its way, with a stream and memory of its own. One caller at a time.
struct Lane {
  explicit Lane(at::Device device) : own_stream(device), stream(own_stream.get()) {}

  void clear() {
    stream.synchronize();
    buckets.clear();
  }

  const OwnStream own_stream;
  const c10::cuda::CUDAStream stream;
  at::cuda::MempoolId_t pool{};  // of all its graphs, for only one runs at a time
  std::list<Bucket> buckets;     // the last used first
  bool busy = false;
};

class CudaEngine final : public TensorEngine {
 public:
  CudaEngine(const FrozenModel& model, cpu::FusedNetwork network, const EngineOptions& options)
      : device_(options.device),
        dtype_(scalar_type(*options.dtype)),
        max_batch_(options.max_batch),
        most_(options.max_batch),
        lanes_{Lane(device_), Lane(device_)} {
    info_.name = "cuda";
    info_.device = options.device;
    info_.dtype = options.tf32 ? "tf32" : dtype_name(*options.dtype);
    info_.at_once = static_cast<int>(lanes_.size());
    const PlainMode mode;
    Lane& lane = lanes_.front();
    const c10::cuda::CUDAStreamGuard guard(lane.stream);
    // TF32 has float16's ten bits of mantissa, and so its tolerance.
    const auto tolerance_of = options.tf32 ? ElementType::float16 : *options.dtype;
    info_.classes = network.layers.back().out_channels;
    info_.features = network.layers.back().in_channels;
    network_.emplace(std::move(network), device_, dtype_, options.tf32);
    info_.golden = check_golden(
        model, [&](const at::Tensor& batch) { return run_tensor(batch, true, true); }, tolerance_of);
    const auto& shape = model.metadata().golden.shape;
    in_parts<c10::OutOfMemoryError>(
        max_batch_, most_, [&](std::int64_t, int size) { bucket_for(lane, size, shape[2], shape[3]); },
        [&] { give_back(lane); });
    info_.reason = describe(bucket_for(lane, most_, shape[2], shape[3]));
    // The kernels of a large batch are others than those of a small one.
    const GoldenResult of_largest = check_golden(
        model,
        [&](const at::Tensor& batch) {
          const std::int64_t count = batch.size(0), size = std::max<std::int64_t>(most_, count);
          const auto many = batch.repeat({(size + count - 1) / count, 1, 1, 1}).narrow(0, 0, size);
          const auto outputs = run_tensor(many, true, true);
          return TensorOutputs{outputs.logits.narrow(0, 0, count), outputs.features.narrow(0, 0, count)};
        },
        tolerance_of);
    if (!(of_largest.errors.largest() <= info_.golden.errors.largest())) info_.golden = of_largest;
    for (Lane& other : lanes_) {  // are ready too, where there is room for that
      try {
        const c10::cuda::CUDAStreamGuard on_other(other.stream);
        bucket_for(other, most_, shape[2], shape[3]);
      } catch (const c10::OutOfMemoryError&) {
        other.clear();
        empty_cache();
      }
    }
  }

  ~CudaEngine() override {
    try {
      const c10::cuda::CUDAGuard guard(device_);
      for (Lane& lane : lanes_) lane.clear();
    } catch (const std::exception&) {  // a device that has failed cannot be waited for
    }
  }

  TensorOutputs run_tensor(const at::Tensor& batch, bool logits, bool features) override {
    check_tensor(batch);
    check_process(process_, lost_by_fork);
    const PlainMode mode;
    const std::int64_t count = batch.size(0), height = batch.size(2), width = batch.size(3);
    const c10::cuda::CUDAGuard guard(device_);
    const auto caller = c10::cuda::getCurrentCUDAStream();
    refuse_capture(caller);
    const Turn turn(*this);
    Lane& lane = turn.lane;
    after_caller(lane);
    TensorOutputs result;
    std::vector<at::Tensor TensorOutputs::*> wanted;
    if (logits) wanted.push_back(&TensorOutputs::logits);
    if (features) wanted.push_back(&TensorOutputs::features);
    const auto part = [&](std::int64_t begin, int size) {
      Bucket& bucket = bucket_for(lane, std::max(size, 1), height, width);
      for (const auto which : wanted) {
        const at::Tensor& rows = bucket.outputs.*which;
        if (!(result.*which).defined()) result.*which = at::empty({count, rows.size(1)}, rows.options());
      }
      if (size == 0) return;
      // First to the GPU, which converts faster than the CPU. Rows of the input behind `size` keep what they
      // had: nobody reads what becomes of them.
      bucket.input.narrow(0, 0, size).copy_(batch.narrow(0, begin, size).to(device_));
      if (bucket.graph)
        bucket.graph->replay();
      else
        bucket.outputs = network_->run(bucket.input, bucket.methods);
      for (const auto which : wanted)
        (result.*which).narrow(0, begin, size).copy_((bucket.outputs.*which).narrow(0, 0, size));
    };
    try {
      const c10::cuda::CUDAStreamGuard streams(lane.stream);
      if (count == 0) part(0, 0);
      in_parts<c10::OutOfMemoryError>(count, most_, part, [&] { give_back(lane); });
    } catch (const c10::OutOfMemoryError&) {
      out_of_memory(batch, info_.device);
    } catch (...) {
      lane.stream.synchronize();  // what has been enqueued reads the batch
      throw;
    }
    c10::Event done(c10::DeviceType::CUDA);
    done.record(lane.stream);
    done.block(caller);
    for (const auto which : wanted) (result.*which).record_stream(caller);
    if (batch.device() == device_) batch.record_stream(caller);  // which waits for the lane
    return result;
  }
  const EngineInfo& info() const override { return info_; }

  std::vector<LayerTime> profile_tensor(const at::Tensor& batch) override {
    check_profiled(as_batch(batch), max_batch_);
    check_process(process_, lost_by_fork);
    if (batch.size(0) == 0) return {};
    const PlainMode mode;
    const c10::cuda::CUDAGuard guard(device_);
    const Turn turn(*this);
    after_caller(turn.lane);
    const c10::cuda::CUDAStreamGuard streams(turn.lane.stream);
    try {
      auto& bucket = bucket_for(turn.lane, static_cast<int>(batch.size(0)), batch.size(2), batch.size(3));
      const auto input = batch.to(device_).to(dtype_).contiguous(at::MemoryFormat::ChannelsLast);
      const std::lock_guard measuring(building());
      std::vector<LayerTime> times;
      network_->run(input, bucket.methods, &times);
      turn.lane.stream.synchronize();
      return times;
    } catch (const c10::OutOfMemoryError&) {
      throw std::runtime_error("out of memory on " + info_.device + " for a batch of " +
                               std::to_string(batch.size(0)) +
                               " images, which is profiled in one piece; take a smaller one");
    }
  }

 private:
  static constexpr const char* lost_by_fork = "CUDA does not survive that";

  using Size = std::tuple<int, std::int64_t, std::int64_t>;  // of a batch, height and width

  // Waits for a free lane; the first one whose memory is warm is preferred.
  struct Turn {
    explicit Turn(CudaEngine& engine) : Turn(engine, engine.take_lane()) {}
    Turn(CudaEngine& engine, Lane& taken) : engine(engine), lane(taken) {}
    ~Turn() {
      {
        const std::lock_guard lock(engine.mutex_);
        lane.busy = false;
      }
      engine.lane_free_.notify_one();
    }
    Turn(const Turn&) = delete;

    CudaEngine& engine;
    Lane& lane;
  };

  Lane& take_lane() {
    const std::lock_guard first_in_the_queue(queue_);
    std::unique_lock lock(mutex_);
    Lane* found = nullptr;
    lane_free_.wait(lock, [&] {
      const auto it = std::find_if(lanes_.begin(), lanes_.end(), [](const Lane& lane) { return !lane.busy; });
      found = it == lanes_.end() ? nullptr : &*it;
      return found != nullptr;
    });
    found->busy = true;
    return *found;
  }

  // Work that the caller has enqueued, such as what makes the batch, comes first.
  void after_caller(const Lane& lane) {
    c10::Event ready(c10::DeviceType::CUDA);
    ready.record(c10::cuda::getCurrentCUDAStream(device_.index()));
    ready.block(lane.stream);
  }

  // On the lane's stream, in a turn. The reference is good until the next call. A size is measured, in a
  // second or more, when it comes for the second time: for one that comes once, such as the rest of a folder,
  // that would not pay.
  Bucket& bucket_for(Lane& lane, int wanted, std::int64_t height, std::int64_t width) {
    const int size = bucket_size(wanted, std::max(most_.load(), wanted));
    auto found = lane.buckets.end();
    for (auto it = lane.buckets.begin(); it != lane.buckets.end(); ++it)
      if (it->height == height && it->width == width && it->size >= size &&
          (found == lane.buckets.end() || it->size < found->size))
        found = it;
    if (found != lane.buckets.end() && (found->size == size || comes_first({size, height, width}))) {
      lane.buckets.splice(lane.buckets.begin(), lane.buckets, found);
      return lane.buckets.front();
    }
    if (lane.buckets.size() == most_buckets) {
      lane.stream.synchronize();
      lane.buckets.pop_back();
    }
    const std::lock_guard turn(building());
    Bucket bucket{size, height, width, {}, {}, {}, nullptr};
    const auto noise =
        at::randn({1, 3, height, width}, at::detail::createCPUGenerator(), at::TensorOptions(at::kFloat));
    bucket.input =
        noise.to(device_, dtype_).repeat({size, 1, 1, 1}).contiguous(at::MemoryFormat::ChannelsLast);
    auto [known, fresh] = methods_.try_emplace({size, height, width});
    if (fresh) {
      try {
        known->second = network_->choose(bucket.input, notes_);
      } catch (...) {
        methods_.erase(known);
        throw;
      }
    }
    bucket.methods = known->second;
    network_->run(bucket.input, bucket.methods);  // libraries load what they need: not while capturing
    lane.stream.synchronize();
    c10::cuda::CUDACachingAllocator::emptyCache();  // what this took: the graph's pool has memory of its own
    if (std::none_of(lane.buckets.begin(), lane.buckets.end(),
                     [](const Bucket& other) { return other.graph != nullptr; }))
      lane.pool = at::cuda::graph_pool_handle();  // a pool without graphs is gone for good
    try {
      bucket.graph = std::make_unique<Graph>(
          lane.pool, [&] { bucket.outputs = network_->run(bucket.input, bucket.methods); });
    } catch (const c10::OutOfMemoryError&) {
      throw;
    } catch (const std::exception& error) {
      const std::string message = error.what();
      if (notes_.find("without CUDA graphs") == std::string::npos)
        notes_ +=
            "; without CUDA graphs: " + message.substr(0, std::min<std::size_t>(message.find('\n'), 200));
      bucket.outputs = network_->run(bucket.input, bucket.methods);
    }
    lane.buckets.push_front(std::move(bucket));
    return lane.buckets.front();
  }

  bool comes_first(const Size& size) {
    const std::lock_guard lock(mutex_);
    return came_.insert(size).second;
  }

  // What the lane of an exhausted caller and lanes without one hold.
  void give_back(Lane& own) {
    own.clear();
    for (Lane& lane : lanes_) {
      {
        const std::lock_guard lock(mutex_);
        if (lane.busy) continue;
        lane.busy = true;
      }
      const Turn turn(*this, lane);
      lane.clear();
    }
    empty_cache();
  }

  static void empty_cache() {
    const std::lock_guard capturing(building());  // while anybody captures, the allocator gives nothing back
    c10::cuda::CUDACachingAllocator::emptyCache();
  }

  std::string describe(const Bucket& bucket) {
    std::map<std::string, int> counts;
    for (const auto method : network_->convolutions(bucket.methods)) ++counts[name(method)];
    std::string text =
        "fused layers, channels-last, a CUDA graph for each batch size; by measurement at batch " +
        std::to_string(bucket.size) + ":";
    for (const auto& [method, count] : counts) text += ' ' + std::to_string(count) + " × " + method + ',';
    text.pop_back();
    if (most_ < max_batch_)
      text += "; batches are cut into parts of " + std::to_string(most_) + ", for " +
              std::to_string(max_batch_) + " images do not fit in the memory";
    return text + notes_;
  }

  const pid_t process_ = getpid();
  const at::Device device_;
  const at::ScalarType dtype_;
  const int max_batch_;
  std::atomic<int> most_;  // images computed at a time; less than max_batch_ after running out of memory
  std::optional<DeviceNetwork> network_;
  std::array<Lane, 2> lanes_;
  std::mutex mutex_;  // of every lane's `busy`, and of came_
  Turns queue_;       // of those who wait for a lane
  std::condition_variable lane_free_;
  std::set<Size> came_;
  std::map<Size, Methods> methods_;  // with building() held
  std::string notes_;                // likewise
  EngineInfo info_;
};

}  // namespace

std::unique_ptr<Engine> make_cuda_engine(const FrozenModel& model, const EngineOptions& options,
                                         std::string& why) {
  try {
    for (const auto& weights : model.network().stored) check_stored(model, weights);
    cpu::FusedNetwork network = cpu::fuse(model.network());
    auto engine = std::make_unique<CudaEngine>(model, std::move(network), options);
    const auto& golden = engine->info().golden;
    if (golden.passed()) return engine;
    why = "the CUDA engine failed the golden check: " + golden.text();
  } catch (const cpu::UnsupportedNetwork& error) {
    why = std::string("the CUDA engine has no ") + error.what();
  } catch (const c10::OutOfMemoryError& error) {
    throw std::runtime_error("out of memory on " + options.device +
                             ": the network does not fit beside what the GPU holds already");
  } catch (const c10::Error& error) {
    why = std::string("the CUDA engine failed: ") + error.what_without_backtrace();
    why.resize(std::min<std::size_t>(why.find('\n'), std::min<std::size_t>(why.size(), 300)));
  }
  return nullptr;
}

}  // namespace swsl
