#include <swsl/libtorch/tensors.h>

#include <memory>

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include "libtorch/fresh_thread.h"
#include "libtorch/tensor_engine.h"
#include "model/network.h"

namespace swsl::libtorch {
namespace {

// LibTorch's messages end in a C++ backtrace, which tells a user nothing.
std::string first_lines(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  return torch_error ? torch_error->what_without_backtrace() : error.what();
}

at::Tensor run(Engine& engine, const at::Tensor& batch, void (Engine::*method)(const Batch&, float*),
               int columns) {
  check_tensor(batch);
  const bool known = batch.scalar_type() == at::kFloat || batch.scalar_type() == at::kHalf ||
                     batch.scalar_type() == at::kBFloat16;
  const auto convert = [&] { return batch.detach().to(at::kCPU, at::kFloat); };
  const at::Tensor input = batch.is_cpu() && known ? batch : on_fresh_thread(convert);
  at::Tensor rows = at::empty({batch.size(0), columns}, at::kFloat);
  (engine.*method)(as_batch(input), rows.mutable_data_ptr<float>());
  return rows;
}

}  // namespace

at::Tensor forward(Engine& engine, const at::Tensor& batch) {
  if (auto* with_tensors = dynamic_cast<TensorEngine*>(&engine))
    return with_tensors->run_tensor(batch, true, false).logits;
  return run(engine, batch, &Engine::forward, engine.info().classes);
}

at::Tensor embed(Engine& engine, const at::Tensor& batch) {
  if (auto* with_tensors = dynamic_cast<TensorEngine*>(&engine))
    return with_tensors->run_tensor(batch, false, true).features;
  return run(engine, batch, &Engine::embed, engine.info().features);
}

at::Tensor rows(BatchResult result) {
  auto owner = std::make_unique<Floats>(std::move(result.rows));
  auto* held = owner.release();
  return at::from_blob(held->data(), result.shape, [held](void*) { delete held; }, at::kFloat);
}

torch::jit::Module load_module(const FrozenModel& model) {
  check_torchscript(model, "its TorchScript is asked for");
  torch::jit::Module module;
  try {
    module = on_fresh_thread([&] { return torch::jit::load(model.path(), at::kCPU); });
  } catch (const std::exception& error) {
    throw ModelError(model.path() + ": LibTorch cannot load it: " + first_lines(error));
  }
  for (const char* method : {"forward", "embed"})
    if (!module.find_method(method))
      throw ModelError(model.path() + ": has no method " + method + "; expected a module exported by swsl");
  if (module.parameters().size() + module.buffers().size() != 0)
    throw ModelError(model.path() +
                     ": not frozen (it still has parameters); export it again with: swsl export");
  return module;
}

}  // namespace swsl::libtorch
