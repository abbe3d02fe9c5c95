#include "engine/cpu_engine.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <list>
#include <mutex>
#include <numeric>
#include <stdexcept>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "engine/batch_check.h"
#include "engine/plan/pack.h"
#include "engine/plan/plan.h"
#include "engine/thread_pool.h"
#include "engine/turns.h"
#include "libtorch/fresh_thread.h"
#include "libtorch/graph_reader.h"

namespace swsl {
namespace {

using namespace cpu;

// Batches are computed in parts of 1, 2, 4, … max_batch images: a handful of plans whatever the callers
// bring.
constexpr std::size_t most_plans = 8;

class CpuEngine final : public Engine {
 public:
  CpuEngine(const FrozenModel& model, FusedNetwork network, const KernelSet& kernels,
            const EngineOptions& options)
      : max_batch_(options.max_batch),
        threads_(options.threads > 0 ? options.threads : at::get_num_threads()),
        network_(pack(std::move(network), kernels, threads_)) {
    info_.name = "planned";
    info_.device = "cpu";
    info_.dtype = dtype_name(options.dtype);
    info_.threads = threads_.size();
    info_.reason = std::string("fused layers, weights packed for ") + name(kernels.isa);
    const auto both = [&](const at::Tensor& batch) {
      Outputs outputs{{}, at::empty({batch.size(0), network_.network.layers.back().in_channels}, at::kFloat)};
      outputs.logits = compute(batch, false, nullptr, outputs.features.mutable_data_ptr<float>());
      return outputs;
    };
    info_.golden = model.check_golden(both, options.dtype);
  }

  at::Tensor forward(const at::Tensor& batch) override { return compute(batch, false, nullptr); }
  at::Tensor embed(const at::Tensor& batch) override { return compute(batch, true, nullptr); }
  std::vector<LayerTime> profile(const at::Tensor& batch) override {
    check_profiled(batch, max_batch_);
    std::vector<LayerTime> times;
    compute(batch, false, &times);
    return times;
  }
  const EngineInfo& info() const override { return info_; }

 private:
  // `features_too`: where the features go beside logits.
  at::Tensor compute(const at::Tensor& batch, bool features, std::vector<LayerTime>* times,
                     float* features_too = nullptr) {
    check_batch(batch);
    check_process(process_, "its threads stayed behind");
    const bool as_needed = batch.is_cpu() && batch.scalar_type() == at::kFloat && batch.is_contiguous();
    const auto convert = [&] { return batch.detach().to(at::kCPU, at::kFloat).contiguous(); };
    const at::Tensor input = as_needed ? batch : on_fresh_thread(convert);
    const auto height = static_cast<int>(input.size(2)), width = static_cast<int>(input.size(3));
    const std::int64_t count = input.size(0), image = std::int64_t{3} * height * width;
    const std::lock_guard turn(turn_);
    at::Tensor output;
    const auto rows = [&](const Plan& plan) {
      const int columns = features ? plan.feature_channels() : plan.output_channels();
      if (!output.defined()) output = at::empty({count, columns}, at::kFloat);
      return columns;
    };
    if (count == 0) rows(plan_for(1, height, width));
    for (std::int64_t begin = 0; begin < count;) {
      const auto left = static_cast<std::uint64_t>(std::min<std::int64_t>(count - begin, max_batch_));
      const bool full = left == static_cast<std::uint64_t>(max_batch_);
      const auto size = static_cast<int>(full || times != nullptr ? left : std::bit_floor(left));
      Plan& plan = plan_for(size, height, width);
      const int columns = rows(plan);
      const float* from = input.const_data_ptr<float>() + begin * image;
      float* to = output.mutable_data_ptr<float>() + begin * columns;
      if (features)
        plan.run_features(from, to, arena_, threads_);
      else
        plan.run(from, to, arena_, threads_, times);
      if (features_too != nullptr) plan.read_features(features_too + begin * plan.feature_channels());
      begin += size;
    }
    return output;
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

const KernelSet* kernels_for(at::ScalarType dtype) {
  return dtype == at::kFloat ? float32_kernels() : dtype == at::kBFloat16 ? bfloat16_kernels() : nullptr;
}

}  // namespace

double multiply_add_peak(at::ScalarType dtype, int thread_count) {
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
      operations[static_cast<std::size_t>(index)] = kernels->peak_loop(factors.data(), rounds);
    });
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::max(best, std::accumulate(operations.begin(), operations.end(), 0.0) / took.count());
  }
  return best;
}

std::unique_ptr<Engine> make_cpu_engine(const FrozenModel& model, const EngineOptions& options,
                                        std::string& why) {
  const bool known_dtype = options.dtype == at::kFloat || options.dtype == at::kBFloat16;
  const KernelSet* kernels = kernels_for(options.dtype);
  if (kernels == nullptr) {
    why = known_dtype ? "the planned engine needs a processor with " +
                            std::string(options.dtype == at::kFloat ? "AVX2" : "AVX512-BF16") + " for " +
                            dtype_name(options.dtype)
                      : "the planned engine computes in float32 and bfloat16 only";
    return nullptr;
  }
  try {
    FusedNetwork network = read_model(model);
    if (network.layers.front().in_channels != 3)
      throw UnsupportedNetwork("a first convolution of other than 3 channels");
    auto engine = std::make_unique<CpuEngine>(model, std::move(network), *kernels, options);
    const auto& golden = engine->info().golden;
    if (golden.passed()) return engine;
    why = "the planned engine failed the golden check: " + golden.text();
  } catch (const UnsupportedNetwork& error) {
    why = std::string("the planned engine has no ") + error.what();
  }
  return nullptr;
}

}  // namespace swsl
