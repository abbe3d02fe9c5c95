#pragma once

#include <memory>
#include <string>

#include <swsl/engine.h>

namespace swsl {

// Runs the module's own graph through LibTorch's interpreter, on any device that LibTorch has. `why_not` says
// what stood in the way of a faster engine, if one was tried.
std::unique_ptr<Engine> make_torchscript_engine(const FrozenModel& model, const EngineOptions& options,
                                                const std::string& why_not);

}  // namespace swsl
