// The fused form of a network: a few layers, each as much as one kernel does.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/network.h"

namespace swsl::cpu {

// The network holds something the engine has no kernel for; the message names it.
class SWSL_API UnsupportedNetwork : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// One step of the fused network: a convolution with everything that can ride in its epilogue, or a pool.
struct Layer {
  Operation operation;  // convolution, max_pool, average_pool, global_average_pool; a linear layer is a 1×1
                        // convolution
  std::string name;
  int input = 0, output = 0;
  int residual = -1;  // a value added before the ReLU, or -1
  bool relu = false;
  Window window;
  int groups = 1;
  int in_channels = 0, out_channels = 0;
  std::shared_ptr<const float> weights, bias;
};

struct FusedNetwork {
  std::vector<Layer> layers;
  int input = 0, output = 0, values = 0;
};

// Folds additions and ReLUs into the convolutions before them. Throws UnsupportedNetwork where that is
// impossible, or where the last layer is not fed by the features.
SWSL_API FusedNetwork fuse(const Network& network);

}  // namespace swsl::cpu
