#include "libtorch/tensor_engine.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "engine/batch_check.h"
#include "libtorch/fresh_thread.h"

namespace swsl {

at::ScalarType scalar_type(ElementType type) {
  switch (type) {
    case ElementType::float32: return at::kFloat;
    case ElementType::bfloat16: return at::kBFloat16;
    case ElementType::float16: break;
  }
  return at::kHalf;
}

at::Tensor as_tensor(const Batch& batch) {
  const at::Device device =
      batch.cuda < 0 ? at::Device(at::kCPU) : at::Device(at::kCUDA, static_cast<at::DeviceIndex>(batch.cuda));
  return at::from_blob(const_cast<void*>(batch.data), batch.shape, batch.strides,
                       at::TensorOptions(device).dtype(scalar_type(batch.type)));
}

Batch as_batch(const at::Tensor& tensor) {
  Batch batch{tensor.const_data_ptr()};
  batch.type = tensor.scalar_type() == at::kFloat  ? ElementType::float32
               : tensor.scalar_type() == at::kHalf ? ElementType::float16
                                                   : ElementType::bfloat16;
  std::copy_n(tensor.sizes().data(), 4, batch.shape.data());
  std::copy_n(tensor.strides().data(), 4, batch.strides.data());
  if (tensor.is_cuda()) batch.cuda = tensor.device().index();
  return batch;
}

// LibTorch's operators could wait for threads that a fork has left behind (fresh_thread.h).
void copy_to_cpu(const at::Tensor& tensor, float* to) {
  const bool as_it_is = tensor.is_cpu() && tensor.scalar_type() == at::kFloat && tensor.is_contiguous();
  const auto convert = [&] { return tensor.to(at::kCPU, at::kFloat).contiguous(); };
  const at::Tensor floats = as_it_is ? tensor : tensor.is_cpu() ? on_fresh_thread(convert) : convert();
  std::copy_n(floats.const_data_ptr<float>(), floats.numel(), to);
}

void TensorEngine::run(const Batch& batch, float* logits, float* features) {
  check_batch(batch);
  const auto outputs = run_tensor(as_tensor(batch), logits != nullptr, features != nullptr);
  if (logits != nullptr) copy_to_cpu(outputs.logits, logits);
  if (features != nullptr) copy_to_cpu(outputs.features, features);
}

std::vector<LayerTime> TensorEngine::profile(const Batch& batch) {
  check_batch(batch);
  return profile_tensor(as_tensor(batch));
}

GoldenResult check_golden(const FrozenModel& model,
                          const std::function<TensorOutputs(const at::Tensor&)>& compute, ElementType dtype) {
  const auto to_vector = [](const at::Tensor& row) {
    std::vector<float> values(static_cast<std::size_t>(row.numel()));
    copy_to_cpu(row, values.data());
    return values;
  };
  const auto on_tensors = [&](const Batch& batch) {
    const TensorOutputs outputs = compute(as_tensor(batch));
    return Outputs{to_vector(outputs.logits), to_vector(outputs.features)};
  };
  return model.check_golden(on_tensors, dtype);
}

void check_tensor(const at::Tensor& batch) {
  if (batch.dim() == 4 && batch.size(1) == 3 && batch.is_floating_point()) return;
  std::string found = c10::toString(batch.scalar_type());
  for (const auto n : batch.sizes()) found += ' ' + std::to_string(n);
  throw std::invalid_argument("batch: expected a floating-point tensor N×3×height×width, got " + found);
}

void out_of_memory(const at::Tensor& batch, const std::string& device) {
  throw std::runtime_error("out of memory on " + device + ": not even one image of " +
                           std::to_string(batch.size(2)) + " × " + std::to_string(batch.size(3)) +
                           " (height × width) fits beside what the GPU holds already");
}

}  // namespace swsl
