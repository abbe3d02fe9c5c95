#include "engine/cpu_engine.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <list>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "engine/batch_check.h"
#include "engine/float_batch.h"
#include "engine/plan/pack.h"
#include "engine/plan/plan.h"
#include "model/network.h"
#include "threads/thread_pool.h"
#include "threads/turns.h"

namespace swsl {
namespace {

using namespace cpu;

// Batches are computed in parts of 1, 2, 4, … max_batch images: a handful of plans whatever the callers
// bring.
constexpr std::size_t most_plans = 8;

// What the golden check of a sound file needs at most, many times over: the activations of one image.
constexpr std::size_t most_arena_bytes = std::size_t{1} << 30;

// The weights by their CRCs; several threads, for there may be gigabytes.
FusedNetwork checked(const FrozenModel& model, FusedNetwork network, ThreadPool& threads) {
  const auto& stored = model.network().stored;
  std::atomic<std::size_t> next{0}, damaged{stored.size()};
  threads.run([&](int) {
    for (std::size_t i; (i = next.fetch_add(1)) < stored.size();)
      if (!stored[i].is_sound()) damaged = i;
  });
  if (damaged < stored.size()) check_stored(model, stored[damaged]);
  check_classifier(model);
  return network;
}

class CpuEngine final : public Engine {
 public:
  CpuEngine(const FrozenModel& model, FusedNetwork network, const KernelSet& kernels,
            const EngineOptions& options)
      : max_batch_(options.max_batch),
        threads_(options.threads),
        network_(pack(checked(model, std::move(network), threads_), kernels, threads_)) {
    info_.name = "planned";
    info_.device = "cpu";
    info_.dtype = dtype_name(*options.dtype);
    info_.threads = threads_.size();
    info_.reason = std::string("fused layers, weights packed for ") + name(kernels.isa);
    if (kernels.bfloat16) info_.reason += why_no_tiles();
    info_.classes = network_.network.layers.back().out_channels;
    info_.features = network_.network.layers.back().in_channels;
    const auto& shape = model.metadata().golden.shape;
    try {
      const Plan plan(network_, 1, static_cast<int>(shape[2]), static_cast<int>(shape[3]), threads_.size());
      if (plan.arena_bytes() > most_arena_bytes)
        throw UnsupportedNetwork("activations of more than a gigabyte an image");
    } catch (const UnsupportedNetwork& error) {
      throw ModelError(model.path() + ": its network does not go with its input size: " + error.what());
    }
    const auto both = [&](const Batch& batch) {
      Outputs outputs{std::vector<float>(info_.classes), std::vector<float>(info_.features)};
      run(batch, outputs.logits.data(), outputs.features.data());
      return outputs;
    };
    info_.golden = model.check_golden(both, *options.dtype);
  }

  void run(const Batch& batch, float* logits, float* features) override {
    compute(batch, {.logits = logits, .features = features});
  }
  std::vector<LayerTime> profile(const Batch& batch) override {
    check_profiled(batch, max_batch_);
    std::vector<LayerTime> times;
    std::vector<float> logits(static_cast<std::size_t>(batch.shape[0]) * info_.classes);
    compute(batch, {.logits = logits.data(), .times = &times});
    return times;
  }
  const EngineInfo& info() const override { return info_; }

 private:
  // What is asked for; the rest is null.
  struct Wanted {
    float* logits = nullptr;
    float* features = nullptr;
    std::vector<LayerTime>* times = nullptr;
  };

  void compute(const Batch& batch, const Wanted& wanted) {
    check_batch(batch);
    check_process(process_, "its threads stayed behind");
    const FloatBatch input(batch);
    const auto height = static_cast<int>(batch.shape[2]), width = static_cast<int>(batch.shape[3]);
    const std::int64_t count = batch.shape[0], image = std::int64_t{3} * height * width;
    const std::lock_guard turn(turn_);
    for (std::int64_t begin = 0; begin < count;) {
      const auto left = static_cast<std::uint64_t>(std::min<std::int64_t>(count - begin, max_batch_));
      const bool full = left == static_cast<std::uint64_t>(max_batch_);
      const auto size = static_cast<int>(full || wanted.times != nullptr ? left : std::bit_floor(left));
      Plan& plan = plan_for(size, height, width);
      const float* from = input.data() + begin * image;
      float* features = wanted.features + (wanted.features == nullptr ? 0 : begin * info_.features);
      if (wanted.logits == nullptr) {
        plan.run_features(from, features, arena_, threads_);
      } else {
        plan.run(from, wanted.logits + begin * info_.classes, arena_, threads_, wanted.times);
        if (features != nullptr) plan.read_features(features);
      }
      begin += size;
    }
  }

  Plan& plan_for(int batch, int height, int width) {
    const auto fits = [&](const Plan& plan) {
      return plan.batch() == batch && plan.height() == height && plan.width() == width;
    };
    auto found = std::find_if(plans_.begin(), plans_.end(), fits);
    if (found == plans_.end()) {
      try {
        plans_.emplace_front(network_, batch, height, width, threads_.size());
      } catch (const UnsupportedNetwork& error) {
        throw std::invalid_argument(std::string("batch: ") + error.what());
      }
      if (plans_.size() > most_plans) {
        if (arena_.prepared_for == &plans_.back()) arena_.prepared_for = nullptr;
        plans_.pop_back();
      }
    } else {
      plans_.splice(plans_.begin(), plans_, found);
    }
    return plans_.front();
  }

  const pid_t process_ = getpid();
  int max_batch_;
  ThreadPool threads_;
  PackedNetwork network_;
  Turns turn_;             // held by the caller whose batch is under way
  std::list<Plan> plans_;  // the last used first
  Arena arena_;
  EngineInfo info_;
};

const KernelSet* kernels_for(ElementType dtype) {
  return dtype == ElementType::float16 ? nullptr : &best_kernels(dtype == ElementType::bfloat16);
}

}  // namespace

bool computes_fast(ElementType dtype) {
  return dtype == ElementType::float32 || (dtype == ElementType::bfloat16 && supported(cpu::Isa::avx512bf16));
}

double multiply_add_peak(ElementType dtype, int thread_count) {
  const KernelSet* kernels = kernels_for(dtype);
  if (kernels == nullptr) return 0;
  ThreadPool threads(thread_count);
  const std::vector<float> factors(2 * vector_width, 1.0f);
  constexpr int rounds = 200000;
  double best = 0;
  for (int trial = 0; trial < 8; ++trial) {
    std::vector<double> operations(static_cast<std::size_t>(thread_count));
    const auto start = std::chrono::steady_clock::now();
    threads.run([&](int index) {
      const InUse in_use(*kernels);
      operations[static_cast<std::size_t>(index)] = kernels->peak_loop(factors.data(), rounds);
    });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::max(best, std::accumulate(operations.begin(), operations.end(), 0.0) / took.count());
  }
  return best;
}

std::unique_ptr<Engine> make_cpu_engine(const FrozenModel& model, const EngineOptions& options,
                                        std::string& why) {
  const KernelSet* kernels = kernels_for(*options.dtype);
  if (kernels == nullptr) {
    why = "the planned engine computes in float32 and bfloat16 only";
    return nullptr;
  }
  try {
    FusedNetwork network = fuse(model.network());
    const auto& first = network.layers.front();
    const auto& last = network.layers.back();
    if (first.operation != Operation::convolution || first.in_channels != 3)
      throw UnsupportedNetwork("a first operation other than a convolution of 3 channels");
    const auto& golden = model.metadata().golden.outputs;
    if (last.operation != Operation::convolution ||
        std::cmp_not_equal(last.out_channels, golden.logits.size()) ||
        std::cmp_not_equal(last.in_channels, golden.features.size()))
      throw UnsupportedNetwork("a last layer other than a classifier of " +
                               std::to_string(golden.logits.size()) + " classes over " +
                               std::to_string(golden.features.size()) + " features");
    auto engine = std::make_unique<CpuEngine>(model, std::move(network), *kernels, options);
    if (engine->info().golden.passed()) return engine;
    throw ModelError(model.path() + ": golden check failed in " + engine->info().dtype +
                     " on cpu: " + engine->info().golden.text() +
                     (options.dtype == ElementType::float32 ? "; export it again" : "; use dtype float32"));
  } catch (const UnsupportedNetwork& error) {
    why = std::string("the planned engine has no ") + error.what();
  }
  return nullptr;
}

}  // namespace swsl
