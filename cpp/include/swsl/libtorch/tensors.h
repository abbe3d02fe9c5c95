// The runner and its engines with at::Tensor, for C++ programs that use LibTorch. Link swsl::libtorch.
//
//   swsl::Runner runner("model.pt", {.device = "cuda"});
//   at::Tensor logits = swsl::libtorch::forward(runner.engine(), batch);
//
// Linking swsl::libtorch also registers its engines with the core: for CUDA devices, for float16 on the CPU,
// and for networks whose operators have no kernels there.
//
// Errors: std::invalid_argument for a tensor of another shape or type; ModelError for a file that LibTorch
// cannot load.
//
// Thread safety: as of the engine. Tensors share memory with their batch only where that is said.
#pragma once

#include <ATen/core/Tensor.h>

#include <swsl/api.h>
#include <swsl/engine.h>
#include <swsl/runner.h>

namespace torch::jit {
struct Module;  // <torch/script.h>
}

namespace swsl::libtorch {

// batch: N×3×H×W, any floating dtype, any device, N ≥ 0, read where it lies if it is float32 or the engine's
// own kind. Returns float32 on the engine's device, N×classes and N×features.
SWSL_API at::Tensor forward(Engine& engine, const at::Tensor& batch);
SWSL_API at::Tensor embed(Engine& engine, const at::Tensor& batch);

// The rows, float32 on the CPU, in the same memory.
SWSL_API at::Tensor rows(BatchResult result);

// On the CPU, float32, frozen: weights are constants of its methods `forward` and `embed`. Of a `.pt`; a
// `.pt2` has none, which is a ModelError.
SWSL_API torch::jit::Module load_module(const FrozenModel& model);

}  // namespace swsl::libtorch
