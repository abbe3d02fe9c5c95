// The network table: a list of operators over numbered values.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <swsl/api.h>

#include "model/archive.h"

namespace swsl {

struct Window {
  int kernel_height = 1, kernel_width = 1;
  int stride_height = 1, stride_width = 1;
  int pad_height = 0, pad_width = 0;
  int dilation_height = 1, dilation_width = 1;
  bool ceil_mode = false;  // a last window may reach beyond the padding, of which it takes no account

  // Positions along an axis of an input; 0 where none fits.
  int rows(int height) const {
    return places(height, kernel_height, stride_height, pad_height, dilation_height);
  }
  int columns(int width) const {
    return places(width, kernel_width, stride_width, pad_width, dilation_width);
  }
  // What an average at a row and column of the output divides by.
  int area(int row, int column, int height, int width) const {
    const int top = row * stride_height - pad_height, left = column * stride_width - pad_width;
    return (std::min(top + kernel_height, height + pad_height) - top) *
           (std::min(left + kernel_width, width + pad_width) - left);
  }

  bool operator==(const Window&) const = default;

 private:
  int places(int size, int kernel, int stride, int pad, int dilation) const {
    const int room = size + 2 * pad - dilation * (kernel - 1) - 1 + (ceil_mode ? stride - 1 : 0);
    const int count = room < 0 ? 0 : room / stride + 1;
    return ceil_mode && (count - 1) * stride >= size + pad ? count - 1 : count;  // each begins inside
  }
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
  other,  // that no engine of ours has: LibTorch runs it
};

struct Node {
  Operation operation = Operation::other;
  std::string name;         // as the table calls it, for messages
  std::vector<int> inputs;  // values
  int output = 0;           // value
  Window window;            // convolutions and pools
  int groups = 1;
  int in_channels = 0, out_channels = 0;  // convolutions and linear layers
  std::shared_ptr<const float> weights;   // [out_channels][in_channels / groups][kernel_height][kernel_width]
  std::shared_ptr<const float> bias;      // [out_channels] or null
};

struct Network {
  std::vector<Node> nodes;  // in the order of execution
  int input = 0;            // the batch, N×3×H×W
  int output = 0;           // logits, N×classes
  int features = 0;         // N×D
  int values = 0;
  struct Stored {
    std::string name;
    std::span<const std::byte> bytes;
    std::uint32_t crc;

    bool is_sound() const { return crc32(bytes) == crc; }
  };
  std::vector<Stored> stored;              // the weights as the archive has them
  std::shared_ptr<const Archive> archive;  // that holds their bytes
};

class FrozenModel;
class Json;

// Of "network" in swsl.json. Values are numbered: 0 is the batch, i + 1 what operator i makes. Throws
// JsonError and ArchiveError.
Network read_network(const Json& table, std::shared_ptr<const Archive> archive);

// Throws ModelError where the classifier, the last of the operators, is not of the sizes that the golden
// check states: they decide how large an error of the logits may be.
void check_classifier(const FrozenModel& model);

// Throws ModelError where there is none for LibTorch to run. `why`: what it is needed for.
SWSL_API void check_torchscript(const FrozenModel& model, const std::string& why);

// Throws ModelError where they are not.
SWSL_API void check_stored(const FrozenModel& model, const Network::Stored& weights);

}  // namespace swsl
