#pragma once

#include <memory>
#include <string>

#include <swsl/engine.h>

namespace swsl {

// The planned engine for x86 processors with AVX2 or AVX-512. Null where it does not apply; then `why` says
// what stands in its way: the operator, the processor, the dtype, or a golden check that failed.
std::unique_ptr<Engine> make_cpu_engine(const FrozenModel& model, const EngineOptions& options,
                                        std::string& why);

// Floating-point operations a second that `threads` threads reach with the registers alone; 0 where the
// planned engine has no kernels for the dtype.
double multiply_add_peak(at::ScalarType dtype, int threads);

}  // namespace swsl
