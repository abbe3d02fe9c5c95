#include <swsl/engine.h>

#include <charconv>
#include <stdexcept>

#include "engine/auto_dtype.h"
#include "engine/backend.h"
#include "engine/cpu_engine.h"
#include "model/network.h"
#include "threads/cores.h"

namespace swsl {
namespace {

[[noreturn]] void need_libtorch(const std::string& what) {
  throw NeedsLibTorch(what + " needs swsl's LibTorch part (swsl::libtorch), which is not loaded");
}

void check(const EngineOptions& options) {
  if (options.threads < 0)
    throw std::invalid_argument("threads: expected 0 or more, got " + std::to_string(options.threads));
  if (options.max_batch < 1)
    throw std::invalid_argument("max_batch: expected 1 or more, got " + std::to_string(options.max_batch));
  if (options.tf32 && (options.dtype != ElementType::float32 || options.device == "cpu"))
    throw std::invalid_argument("tf32: expected dtype float32 on a CUDA device, got " +
                                (options.dtype ? dtype_name(*options.dtype) : "auto") + " on " +
                                options.device);
}

}  // namespace

std::optional<ElementType> parse_dtype(const std::string& name) {
  if (name == "auto") return std::nullopt;
  for (const auto dtype : {ElementType::float32, ElementType::bfloat16, ElementType::float16})
    if (name == dtype_name(dtype)) return dtype;
  throw std::invalid_argument("dtype: expected float32, bfloat16, float16 or auto, got \"" + name + '"');
}

std::string parse_device(const std::string& name) {
  if (name == "cpu") return name;
  const int count = backend() ? backend()->cuda_devices() : 0;
  if (name == "auto") return count > 0 ? "cuda:0" : "cpu";
  int index = 0;
  bool sound = name == "cuda";
  if (name.starts_with("cuda:")) {
    const auto [end, error] = std::from_chars(name.data() + 5, name.data() + name.size(), index);
    sound = error == std::errc() && end == name.data() + name.size() && index >= 0;
  }
  if (!sound)
    throw std::invalid_argument(R"(device: expected "cpu", "cuda", "cuda:N" or "auto", got ")" + name + '"');
  if (backend() == nullptr) need_libtorch("device: \"" + name + '"');
  if (index >= count)
    throw std::invalid_argument("device: \"" + name + "\" is not here: torch sees " + std::to_string(count) +
                                " CUDA devices" +
                                (count ? "" : " (a CPU build of torch, no driver, or no card)"));
  return "cuda:" + std::to_string(index);
}

std::vector<LayerTime> Engine::profile(const Batch&) { return {}; }

double peak_flops(ElementType dtype, int threads) {
  if (threads < 1) throw std::invalid_argument("threads: expected 1 or more, got " + std::to_string(threads));
  return multiply_add_peak(dtype, threads);
}

std::unique_ptr<Engine> make_engine(const FrozenModel& model, const EngineOptions& given) {
  check(given);
  EngineOptions options = given;
  options.device = parse_device(options.device);
  if (options.threads == 0) options.threads = available_cores();
  if (!options.dtype) return make_fastest_engine(model, options);
  // What a narrow dtype rounds hides what may be wrong with the file, so that is looked for in float32.
  if (options.dtype != ElementType::float32 || options.tf32)
    make_engine(model, {.dtype = ElementType::float32, .threads = options.threads, .max_batch = 1});
  std::string why_not;
  if (options.device == "cpu")
    if (auto engine = make_cpu_engine(model, options, why_not)) return engine;
  if (options.device == "cpu") check_torchscript(model, why_not);
  if (backend() == nullptr) need_libtorch(model.path() + ": " + why_not + ", so it");
  return backend()->make_engine(model, options, why_not);
}

}  // namespace swsl
