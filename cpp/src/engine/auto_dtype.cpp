#include "engine/auto_dtype.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <string>

#include "engine/backend.h"
#include "engine/cpu_engine.h"
#include "engine/kernels/kernels.h"

namespace swsl {
namespace {

namespace fs = std::filesystem;

// An engine that says why it was chosen.
class Chosen final : public Engine {
 public:
  Chosen(std::unique_ptr<Engine> engine, const std::string& why)
      : engine_(std::move(engine)), info_(engine_->info()) {
    info_.reason += "; dtype auto: " + why;
  }
  void run(const Batch& batch, float* logits, float* features) override {
    engine_->run(batch, logits, features);
  }
  std::vector<LayerTime> profile(const Batch& batch) override { return engine_->profile(batch); }
  const EngineInfo& info() const override { return info_; }

 private:
  std::unique_ptr<Engine> engine_;
  EngineInfo info_;
};

std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line;
  return "unknown processor";
}

std::optional<fs::path> cache_file() {
  if (const char* folder = std::getenv("XDG_CACHE_HOME"); folder != nullptr && *folder != '\0')
    return fs::path(folder) / "swsl/dtypes";
  if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0')
    return fs::path(home) / ".cache/swsl/dtypes";
  return std::nullopt;
}

// Whatever could change the answer. The metadata hold the golden logits, so they tell models apart.
std::string cache_key(const FrozenModel& model, const EngineOptions& options) {
  const std::string all = processor() + '\n' + model.metadata().json + '\n' + options.device + '\n' +
                          std::to_string(options.threads) + '\n' + cpu::name(cpu::best_kernels(true).isa) +
                          '\n' + (backend() ? backend()->info().torch_version : "") + '\n' + SWSL_VERSION;
  return std::to_string(std::hash<std::string>{}(all));
}

// Lines "key dtype"; the last one of a key counts.
std::string remembered(const std::string& key) {
  std::string found;
  if (const auto path = cache_file()) {
    std::ifstream file(*path);
    for (std::string line_key, dtype; file >> line_key >> dtype;)
      if (line_key == key) found = dtype;
  }
  return found;
}

void remember(const std::string& key, const std::string& dtype) {
  const auto path = cache_file();
  if (!path) return;
  std::error_code ignored;  // a cache that cannot be written costs a measurement next time, nothing else
  fs::create_directories(path->parent_path(), ignored);
  std::ofstream(*path, std::ios::app) << key + ' ' + dtype + '\n';
}

double milliseconds(Engine& engine, const Batch& batch) {
  std::vector<float> logits(static_cast<std::size_t>(batch.shape[0]) * engine.info().classes);
  double best = 1e9;
  for (int run = 0; run < 4; ++run) {
    const auto start = std::chrono::steady_clock::now();
    engine.forward(batch, logits.data());
    best = std::min(
        best, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

}  // namespace

std::unique_ptr<Engine> make_fastest_engine(const FrozenModel& model, EngineOptions options) {
  const std::string key = cache_key(model, options), known = remembered(key);
  if (known == "float32" || known == "bfloat16") {
    options.dtype = parse_dtype(known);
    return std::make_unique<Chosen>(make_engine(model, options),
                                    known + " was the faster when first measured here");
  }
  options.dtype = ElementType::float32;
  auto exact = make_engine(model, options);
  options.dtype = ElementType::bfloat16;
  if (options.device == "cpu" && !computes_fast(ElementType::bfloat16))
    return std::make_unique<Chosen>(std::move(exact), "this processor has no instructions for bfloat16");
  std::unique_ptr<Engine> narrow;
  try {
    narrow = make_engine(model, options);
  } catch (const ModelError& error) {
    remember(key, "float32");
    return std::make_unique<Chosen>(std::move(exact), std::string("bfloat16 is out, ") + error.what());
  }
  const auto& shape = model.metadata().golden.shape;
  const auto input = golden_input(shape);
  const auto batch = Batch::contiguous(input.data(), {shape[0], shape[1], shape[2], shape[3]});
  const double exact_ms = milliseconds(*exact, batch), narrow_ms = milliseconds(*narrow, batch);
  const bool take_narrow = narrow_ms < exact_ms;
  char why[80];
  std::snprintf(why, sizeof why, "an image takes %.1f ms in float32, %.1f ms in bfloat16", exact_ms,
                narrow_ms);
  remember(key, take_narrow ? "bfloat16" : "float32");
  return std::make_unique<Chosen>(std::move(take_narrow ? narrow : exact), why);
}

}  // namespace swsl
