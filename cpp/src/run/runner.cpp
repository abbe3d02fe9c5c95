#include <swsl/runner.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include <swsl/dynamic_batcher.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "engine/backend.h"
#include "engine/batch_check.h"
#include "run/runner_state.h"

namespace swsl {

// Not of the state, which a batcher's stream shares.
struct Runner::Requests {
  std::mutex making;
  std::shared_ptr<DynamicBatcher> batcher;
};

Runner::Runner(const std::string& model_path, const RunnerOptions& options)
    : state_(State::make(FrozenModel::load(model_path), options)), requests_(std::make_unique<Requests>()) {
#ifdef __GLIBC__
  malloc_trim(0);  // glibc would keep what reading and packing have freed
#endif
}
Runner::~Runner() = default;
Runner::Runner(Runner&&) noexcept = default;
Runner& Runner::operator=(Runner&&) noexcept = default;

std::vector<Prediction> Runner::predictions(std::span<const float> logits, int top_k) const {
  return state_->predictions(logits, top_k);
}

std::vector<Result> Runner::run(std::span<const ImageSource> images, const std::vector<Output>& outputs,
                                int top_k) const {
  const Wanted wanted(outputs, top_k);
  const std::size_t most = state_->batch_size;
  std::vector<Result> results;
  for (std::size_t begin = 0; begin < images.size(); begin += most) {
    const auto part = images.subspan(begin, std::min(most, images.size() - begin));
    auto batch = state_->run(part, state_->columns(wanted), [&](const Batch& prepared, float* rows) {
      state_->compute(prepared, wanted, rows);
    });
    for (std::size_t i = 0; i < part.size(); ++i)
      results.push_back(state_->result(part[i], std::move(batch.errors[i]), batch.row(i), wanted));
  }
  return results;
}

std::vector<Result> Runner::classify(std::span<const ImageSource> images, int top_k) const {
  return run(images, {Output::predictions}, top_k);
}

std::vector<Prediction> Runner::classify_file(const std::string& path, int top_k) const {
  const ImageSource source = path;
  auto result = classify({&source, 1}, top_k).front();
  if (!result.ok()) throw ImageError(result.error);
  return std::move(result.predictions);
}

BatchResult Runner::logits(std::span<const ImageSource> images) const {
  return state_->run(images, state_->info.classes,
                     [this](const Batch& batch, float* rows) { state_->compute(batch, rows, nullptr); });
}

BatchResult Runner::embed(std::span<const ImageSource> images) const {
  return state_->run(images, state_->info.features,
                     [this](const Batch& batch, float* rows) { state_->compute(batch, nullptr, rows); });
}

std::future<Result> Runner::submit(ImageSource image) const {
  state_->check_own_process();  // before a lock that may be held for ever
  std::shared_ptr<DynamicBatcher> batcher;
  {
    const std::lock_guard lock(requests_->making);
    if (!requests_->batcher || requests_->batcher->failed())
      requests_->batcher = std::make_shared<DynamicBatcher>(*this);
    batcher = requests_->batcher;
  }
  return batcher->submit(std::move(image));
}

std::vector<LayerTime> Runner::profile(const Batch& batch) const {
  const auto held = state_->cores.for_forward(state_->info.threads);
  return state_->engine->profile(batch);
}

BatchResult Runner::preprocess(std::span<const ImageSource> images) const {
  return state_->preprocess(images);
}

void Runner::forward(const Batch& batch, float* logits) const {
  state_->check_own_process();
  state_->compute(batch, logits, nullptr);
}

std::vector<float> Runner::forward(const Batch& batch) const {
  check_batch(batch);
  std::vector<float> logits(static_cast<std::size_t>(batch.shape[0]) * state_->info.classes);
  forward(batch, logits.data());
  return logits;
}

Engine& Runner::engine() const { return *state_->engine; }
const Metadata& Runner::metadata() const { return state_->metadata; }
const EngineInfo& Runner::info() const { return state_->info; }
int Runner::batch_size() const { return state_->batch_size; }

BuildInfo build_info() {
  BuildInfo info;
  info.swsl_version = SWSL_VERSION;
  info.jpeg = decodes_jpeg();
  info.png = decodes_png();
  if (const Backend* linked = backend()) {
    const auto more = linked->info();
    info.torch_version = more.torch_version;
    info.cuda = more.cuda;
    info.cuda_kernels = more.cuda_kernels;
    info.nvjpeg = more.nvjpeg;
  }
  return info;
}

}  // namespace swsl
