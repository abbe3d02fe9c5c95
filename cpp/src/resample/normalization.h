// Every pixel value of every channel, normalised once: what all paths store.
#pragma once

#include <swsl/preprocessor.h>
#include "resample/kernels/kernel.h"

namespace swsl::resample {

SWSL_API Normalization make_normalization(const PreprocessSpec& spec);

}  // namespace swsl::resample
