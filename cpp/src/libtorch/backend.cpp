#include "engine/backend.h"

#include <ATen/ATen.h>
#include <torch/cuda.h>
#include <torch/version.h>

#include "libtorch/fresh_thread.h"
#include "libtorch/tensor_engine.h"
#include "libtorch/torchscript.h"
#include "run/batch_buffer.h"
#if SWSL_CUDA_KERNELS
#include "libtorch/cuda/batch/cuda_batch.h"
#include "libtorch/cuda/engine/cuda_engine.h"
#include "libtorch/cuda/nvjpeg_decoder.h"
#endif

namespace swsl {
namespace {

class TorchBackend final : public Backend {
 public:
  Info info() const override {
    return {TORCH_VERSION, SWSL_LINKS_CUDA != 0, SWSL_CUDA_KERNELS != 0, SWSL_NVJPEG != 0};
  }

  int cuda_devices() const override { return static_cast<int>(torch::cuda::device_count()); }

  std::unique_ptr<Engine> make_engine(const FrozenModel& model, const EngineOptions& options,
                                      const std::string& why_not) const override {
    if (options.device == "cpu")
      return on_fresh_thread([&] { return make_torchscript_engine(model, options, why_not); });
    std::string why = "this build has no CUDA kernels (no nvcc)";
#if SWSL_CUDA_KERNELS
    if (auto engine = make_cuda_engine(model, options, why)) return engine;
#endif
    if (options.tf32) throw std::invalid_argument("tf32: only the CUDA engine computes in it, and " + why);
    return make_torchscript_engine(model, options, why);
  }

  std::pair<std::shared_ptr<const Nvjpeg>, std::string> make_nvjpeg(
      [[maybe_unused]] const std::string& device) const override {
#if SWSL_CUDA_KERNELS
    auto made = std::make_shared<const Nvjpeg>(at::Device(device));
    std::string decoded_by = made->decoded_by();
    return {std::move(made), std::move(decoded_by)};
#else
    throw std::invalid_argument(
        "nvjpeg: swsl was built without CUDA kernels, which make batches of what it decodes: install nvcc of "
        "torch's CUDA version and PyPI's nvidia-nvjpeg, and build swsl again");
#endif
  }

  void copy_to_cpu(const Batch& batch, float* to) const override { swsl::copy_to_cpu(as_tensor(batch), to); }

  std::unique_ptr<BatchBuffer> make_batch_buffer(const BatchBufferOptions& options) const override {
#if SWSL_CUDA_KERNELS
    return make_cuda_batch(options);
#else
    // Prepared by the CPU, in memory that a GPU copies from fast.
    const auto& spec = options.preprocessor.spec();
    const auto pinned = at::empty({options.batch_size, 3, spec.height, spec.width},
                                  at::TensorOptions(at::kFloat).pinned_memory(true));
    return std::make_unique<FloatBuffer>(
        spec.height, spec.width,
        std::shared_ptr<float>(std::make_shared<at::Tensor>(pinned), pinned.data_ptr<float>()),
        [&preprocessor = options.preprocessor, with_pixels = options.with_pixels](
            const ImageSource& source, float* output, const auto& when_read) {
          return with_pixels(source, when_read,
                             [&](const ImageView& pixels) { preprocessor(pixels, output); }, {});
        });
#endif
  }
};

// Linking this library is asking for it.
[[maybe_unused]] const bool registered = [] {
  register_backend(std::make_unique<TorchBackend>());
  return true;
}();

}  // namespace
}  // namespace swsl
