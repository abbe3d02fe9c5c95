#include <swsl/engine.h>

#include <charconv>
#include <stdexcept>

#include <ATen/Parallel.h>
#include <torch/cuda.h>

#include "engine/auto_dtype.h"
#include "engine/cpu_engine.h"
#include "libtorch/fresh_thread.h"
#if SWSL_CUDA_KERNELS
#include "libtorch/cuda/engine/cuda_engine.h"
#endif
#include "libtorch/torchscript.h"

namespace swsl {

at::ScalarType parse_dtype(const std::string& name) {
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "float16") return at::kHalf;
  if (name == "auto") return at::ScalarType::Undefined;
  throw std::invalid_argument("dtype: expected float32, bfloat16, float16 or auto, got \"" + name + '"');
}

std::string dtype_name(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat: return "float32";
    case at::kBFloat16: return "bfloat16";
    case at::kHalf: return "float16";
    default:
      throw std::invalid_argument(std::string("dtype: expected float32, bfloat16 or float16, got ") +
                                  c10::toString(dtype));
  }
}

at::Device parse_device(const std::string& name) {
  if (name == "cpu") return at::kCPU;
  const int count = torch::cuda::device_count();
  if (name == "auto") return count > 0 ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
  int index = 0;
  bool sound = name == "cuda";
  if (name.starts_with("cuda:")) {
    const auto [end, error] = std::from_chars(name.data() + 5, name.data() + name.size(), index);
    sound = error == std::errc() && end == name.data() + name.size() && index >= 0;
  }
  if (!sound)
    throw std::invalid_argument("device: expected \"cpu\", \"cuda\", \"cuda:N\" or \"auto\", got \"" + name +
                                '"');
  if (index >= count)
    throw std::invalid_argument("device: \"" + name + "\" is not here: torch sees " + std::to_string(count) +
                                " CUDA devices" +
                                (count ? "" : " (a CPU build of torch, no driver, or no card)"));
  return at::Device(at::kCUDA, static_cast<at::DeviceIndex>(index));
}

std::vector<LayerTime> Engine::profile(const at::Tensor&) { return {}; }

double peak_flops(at::ScalarType dtype, int threads) {
  dtype_name(dtype);  // refuses the others
  if (threads < 1) throw std::invalid_argument("threads: expected 1 or more, got " + std::to_string(threads));
  return multiply_add_peak(dtype, threads);
}

namespace {

std::unique_ptr<Engine> make_engine_here(const FrozenModel& model, const EngineOptions& options) {
  if (options.dtype != at::ScalarType::Undefined) dtype_name(options.dtype);  // refuses the others
  if (options.threads < 0)
    throw std::invalid_argument("threads: expected 0 or more, got " + std::to_string(options.threads));
  if (options.max_batch < 1)
    throw std::invalid_argument("max_batch: expected 1 or more, got " + std::to_string(options.max_batch));
  if (options.dtype == at::ScalarType::Undefined && !options.tf32) return make_fastest_engine(model, options);
  if (options.tf32 && (options.dtype != at::kFloat || !options.device.is_cuda()))
    throw std::invalid_argument("tf32: expected dtype float32 on a CUDA device, got " +
                                dtype_name(options.dtype) + " on " + options.device.str());
  // What a narrow dtype rounds hides what may be wrong with the file, so that is looked for in float32.
  if (options.dtype != at::kFloat || options.tf32) {
    EngineOptions exact = options;
    exact.device = at::kCPU;
    exact.dtype = at::kFloat;
    exact.tf32 = false;
    exact.max_batch = 1;
    make_engine(model, exact);
  }
  std::string why_not;
  if (options.device.is_cpu()) {
    if (auto engine = make_cpu_engine(model, options, why_not)) return engine;
  } else {
#if SWSL_CUDA_KERNELS
    if (auto engine = make_cuda_engine(model, options, why_not)) return engine;
#else
    why_not = "this build has no CUDA kernels (no nvcc)";
#endif
    if (options.tf32)
      throw std::invalid_argument("tf32: only the CUDA engine computes in it, and " + why_not);
  }
  return make_torchscript_engine(model, options, why_not);
}

}  // namespace

std::unique_ptr<Engine> make_engine(const FrozenModel& model, const EngineOptions& options) {
  if (!options.device.is_cpu()) return make_engine_here(model, options);
  EngineOptions complete = options;
  if (options.threads == 0) complete.threads = at::get_num_threads();  // which is of each thread
  return on_fresh_thread([&] { return make_engine_here(model, complete); });
}

}  // namespace swsl
