// See ../../engine.h.
#pragma once

#include <utility>

namespace at::cuda {

using MempoolId_t = std::pair<unsigned long long, unsigned long long>;

inline MempoolId_t graph_pool_handle() { return {0, 1}; }

}  // namespace at::cuda
