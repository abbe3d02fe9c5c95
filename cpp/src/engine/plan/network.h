// A network as the CPU engine understands it: a list of operations over numbered values, and its fused form.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace swsl::cpu {

// The network holds something the engine has no kernel for; the message names it.
class UnsupportedNetwork : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Window {
  int kernel_height = 1, kernel_width = 1;
  int stride_height = 1, stride_width = 1;
  int pad_height = 0, pad_width = 0;
  int dilation_height = 1, dilation_width = 1;

  bool operator==(const Window&) const = default;
};

enum class Operation {
  convolution,
  linear,
  relu,
  add,
  max_pool,
  average_pool,
  global_average_pool,
  flatten,
};

struct Node {
  Operation operation;
  std::string name;         // as the graph calls it, for messages
  std::vector<int> inputs;  // values
  int output = 0;           // value
  bool in_place = false;    // overwrites its first input
  Window window;            // convolutions and pools
  int groups = 1;
  int in_channels = 0, out_channels = 0;  // convolutions and linear layers
  std::shared_ptr<const float> weights;   // [out_channels][in_channels / groups][kernel_height][kernel_width]
  std::shared_ptr<const float> bias;      // [out_channels] or null
};

struct Network {
  std::vector<Node> nodes;  // in the order of execution
  int input = 0;            // the batch, N×C×H×W
  int output = 0;
  int values = 0;
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
// impossible.
FusedNetwork fuse(const Network& network);

}  // namespace swsl::cpu
