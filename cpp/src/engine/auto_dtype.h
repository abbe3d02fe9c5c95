#pragma once

#include <memory>

#include <swsl/engine.h>

namespace swsl {

// The engine of the faster of float32 and bfloat16; bfloat16 only if its golden check passes. Measured once
// for a machine, model, device and number of threads, and remembered in the user's cache folder;
// `info().reason` says what was chosen and why.
std::unique_ptr<Engine> make_fastest_engine(const FrozenModel& model, EngineOptions options);

}  // namespace swsl
