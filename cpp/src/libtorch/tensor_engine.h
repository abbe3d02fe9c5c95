// An engine that computes with tensors of LibTorch.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <swsl/engine.h>

namespace swsl {

struct TensorOutputs {
  at::Tensor logits;    // N×classes
  at::Tensor features;  // N×D, which the classifier takes
};

class TensorEngine : public Engine {
 public:
  // batch: N×3×H×W, any floating dtype, any device. Returns what is wanted, float32 on the engine's device;
  // the rest is undefined.
  virtual TensorOutputs run_tensor(const at::Tensor& batch, bool logits, bool features) = 0;
  virtual std::vector<LayerTime> profile_tensor(const at::Tensor&) { return {}; }

  void run(const Batch& batch, float* logits, float* features) final;
  std::vector<LayerTime> profile(const Batch& batch) final;
};

// The same memory. A tensor N×3×H×W of kFloat, kBFloat16 or kHalf.
at::Tensor as_tensor(const Batch& batch);
Batch as_batch(const at::Tensor& tensor);

at::ScalarType scalar_type(ElementType type);

// Copied, from any device and dtype.
void copy_to_cpu(const at::Tensor& tensor, float* to);

// FrozenModel::check_golden, with tensors.
GoldenResult check_golden(const FrozenModel& model,
                          const std::function<TensorOutputs(const at::Tensor&)>& compute, ElementType dtype);

// Throws std::invalid_argument.
void check_tensor(const at::Tensor& batch);

// Where not even a single image of the batch fits.
[[noreturn]] void out_of_memory(const at::Tensor& batch, const std::string& device);

}  // namespace swsl
