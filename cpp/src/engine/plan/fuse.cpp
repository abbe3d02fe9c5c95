#include "engine/plan/fuse.h"

#include <algorithm>

namespace swsl::cpu {
namespace {

Layer layer_of(const Node& node) {
  Layer layer;
  layer.operation = node.operation == Operation::linear ? Operation::convolution : node.operation;
  layer.name = node.name;
  layer.input = node.inputs.at(0);
  layer.output = node.output;
  layer.window = node.window;
  layer.groups = node.groups;
  layer.in_channels = node.in_channels;
  layer.out_channels = node.out_channels;
  layer.weights = node.weights;
  layer.bias = node.bias;
  return layer;
}

}  // namespace

FusedNetwork fuse(const Network& network) {
  std::vector<int> uses(network.values, 0);
  for (const auto& node : network.nodes)
    for (int value : node.inputs) ++uses[value];
  ++uses[network.output];

  FusedNetwork fused{{}, network.input, network.output, network.values};
  // Which value stands for which (flatten changes nothing here), and the layer that makes a value.
  std::vector<int> alias(network.values);
  for (int value = 0; value < network.values; ++value) alias[value] = value;
  std::vector<int> maker(network.values, -1);
  std::vector<bool> flat(network.values, false);

  // The last layer that makes one of `values`, if its epilogue still has room and nobody else wants its raw
  // output.
  const auto open_maker = [&](const std::vector<int>& values, bool adding) {
    int found = -1;
    for (int value : values) {
      const int index = maker[alias[value]];
      if (index < 0 || uses[value] != 1) continue;
      const Layer& layer = fused.layers[index];
      if (layer.operation != Operation::convolution || layer.relu || (adding && layer.residual >= 0))
        continue;
      found = std::max(found, index);
    }
    return found;
  };

  for (const auto& node : network.nodes) {
    switch (node.operation) {
      case Operation::other: throw UnsupportedNetwork(node.name);
      case Operation::convolution:
      case Operation::linear:
      case Operation::max_pool:
      case Operation::average_pool:
      case Operation::global_average_pool: {
        const int input = alias[node.inputs.at(0)];
        const bool is_linear = node.operation == Operation::linear;
        if (is_linear != flat[node.inputs[0]])
          throw UnsupportedNetwork(
              node.name + (is_linear ? " on a value that was not flattened" : " on a flattened value"));
        fused.layers.push_back(layer_of(node));
        fused.layers.back().input = input;
        maker[node.output] = static_cast<int>(fused.layers.size()) - 1;
        flat[node.output] = is_linear;
        break;
      }
      case Operation::flatten:
        if (const int made = maker[alias[node.inputs.at(0)]];
            made < 0 || fused.layers[made].operation != Operation::global_average_pool)
          throw UnsupportedNetwork(node.name + " of anything but a global average pool");
        alias[node.output] = alias[node.inputs[0]];
        flat[node.output] = true;
        break;
      case Operation::relu: {
        const int index = open_maker(node.inputs, false);
        if (index < 0)
          throw UnsupportedNetwork(node.name + " that does not follow a convolution or an addition");
        fused.layers[index].relu = true;
        alias[node.output] = alias[node.inputs[0]];
        flat[node.output] = flat[node.inputs[0]];
        break;
      }
      case Operation::add: {
        const int index = open_maker(node.inputs, true);
        if (index < 0 || node.inputs.size() != 2 || node.inputs[0] == node.inputs[1])
          throw UnsupportedNetwork(node.name +
                                   " of two values of which none comes straight from a convolution");
        Layer& layer = fused.layers[index];
        const int other = alias[node.inputs[0]] == layer.output ? node.inputs[1] : node.inputs[0];
        const int other_maker = maker[alias[other]];
        if (alias[other] == network.input || other_maker > index || flat[other])
          throw UnsupportedNetwork(node.name + " of a value that is not yet there when the convolution runs");
        layer.residual = alias[other];
        alias[node.output] = layer.output;
        break;
      }
    }
  }
  fused.output = alias[network.output];
  if (!fused.layers.empty() && fused.layers.back().input != alias[network.features])
    throw UnsupportedNetwork("a last layer that is fed by other values than the features");
  if (fused.layers.empty() || maker[fused.output] < 0) throw UnsupportedNetwork("the graph computes nothing");
  return fused;
}

}  // namespace swsl::cpu
