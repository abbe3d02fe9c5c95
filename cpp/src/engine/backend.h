// What another library adds to the core: engines for CUDA devices and for networks that have no kernels here.
// swsl::libtorch registers one when it is loaded.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include <swsl/engine.h>
#include <swsl/image.h>

namespace swsl {

class BatchBuffer;
class Nvjpeg;
struct BatchBufferOptions;

class SWSL_API Backend {
 public:
  virtual ~Backend() = default;

  struct Info {
    std::string torch_version;
    bool cuda = false;          // torch's CUDA libraries are linked
    bool cuda_kernels = false;  // and our own kernels compiled
    bool nvjpeg = false;
  };
  virtual Info info() const = 0;

  virtual int cuda_devices() const = 0;

  // `why_not`: what stood in the way of a faster engine, if one was tried.
  virtual std::unique_ptr<Engine> make_engine(const FrozenModel& model, const EngineOptions& options,
                                              const std::string& why_not) const = 0;

  // What decodes JPEGs on a CUDA device, and a word about how. Throws std::invalid_argument where it cannot
  // be had.
  virtual std::pair<std::shared_ptr<const Nvjpeg>, std::string> make_nvjpeg(
      const std::string& device) const = 0;

  // What a batch of float32 on a CUDA device holds, row-major.
  virtual void copy_to_cpu(const Batch& batch, float* to) const = 0;

  // Batches for an engine on a CUDA device.
  virtual std::unique_ptr<BatchBuffer> make_batch_buffer(const BatchBufferOptions& options) const = 0;
};

// Once for a process; who reads it may have begun before.
SWSL_API void register_backend(std::unique_ptr<const Backend> backend);

// Null where no library has registered any.
SWSL_API const Backend* backend();

}  // namespace swsl
