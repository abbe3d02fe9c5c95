#pragma once

#include <memory>
#include <string>

#include <swsl/engine.h>

namespace swsl {

// The planned engine, which every processor has. Null where it does not apply; then `why` says what stands in
// its way: the operator or the dtype. Throws ModelError for a golden check that failed, or weights that are
// damaged.
std::unique_ptr<Engine> make_cpu_engine(const FrozenModel& model, const EngineOptions& options,
                                        std::string& why);

// Whether this processor has instructions for the dtype.
bool computes_fast(ElementType dtype);

// Floating-point operations a second that `threads` threads reach with the registers alone; 0 where the
// planned engine has no kernels for the dtype.
double multiply_add_peak(ElementType dtype, int threads);

}  // namespace swsl
