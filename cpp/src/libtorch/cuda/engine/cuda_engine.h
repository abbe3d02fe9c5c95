#pragma once

#include <memory>
#include <string>

#include <swsl/engine.h>

namespace swsl {

// The engine for NVIDIA GPUs: fused layers, the fastest way for each by measurement, one CUDA graph for each
// of a few batch sizes. Null where it does not apply; then `why` says what stands in its way. Throws
// std::runtime_error when the GPU's memory does not even hold the weights.
std::unique_ptr<Engine> make_cuda_engine(const FrozenModel& model, const EngineOptions& options,
                                         std::string& why);

}  // namespace swsl
