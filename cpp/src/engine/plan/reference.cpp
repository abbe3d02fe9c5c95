#include "engine/plan/reference.h"

#include <algorithm>
#include <limits>

#include "engine/bfloat16.h"

namespace swsl::cpu {
namespace {

Array make(int images, int channels, int height, int width) {
  return {images, channels, height, width,
          std::vector<float>(static_cast<std::size_t>(images) * channels * height * width)};
}

// Calls tap(ky, kx, y, x) for every tap of the window at output pixel (oy, ox) that lies inside the image.
template <class Tap>
void for_each_tap(const Window& w, const Array& input, int oy, int ox, Tap tap) {
  for (int ky = 0; ky < w.kernel_height; ++ky)
    for (int kx = 0; kx < w.kernel_width; ++kx) {
      const int y = oy * w.stride_height - w.pad_height + ky * w.dilation_height;
      const int x = ox * w.stride_width - w.pad_width + kx * w.dilation_width;
      if (y >= 0 && y < input.height && x >= 0 && x < input.width) tap(ky, kx, y, x);
    }
}

Array windowed(const Node& node, const Array& input) {
  const Window& w = node.window;
  const bool convolution = node.operation == Operation::convolution || node.operation == Operation::linear;
  Array output = make(input.images, convolution ? node.out_channels : input.channels, w.rows(input.height),
                      w.columns(input.width));
  const int in_per_group = convolution ? node.in_channels / node.groups : 0;
  for (int n = 0; n < output.images; ++n)
    for (int c = 0; c < output.channels; ++c)
      for (int oy = 0; oy < output.height; ++oy)
        for (int ox = 0; ox < output.width; ++ox) {
          double sum = convolution && node.bias ? node.bias.get()[c] : 0;
          float largest = -std::numeric_limits<float>::infinity();
          for_each_tap(w, input, oy, ox, [&](int ky, int kx, int y, int x) {
            if (!convolution) {
              sum += input.at(n, c, y, x);
              largest = std::max(largest, input.at(n, c, y, x));
              return;
            }
            const int group = c / (node.out_channels / node.groups);
            for (int i = 0; i < in_per_group; ++i) {
              const auto index =
                  ((static_cast<std::size_t>(c) * in_per_group + i) * w.kernel_height + ky) * w.kernel_width +
                  kx;
              sum += static_cast<double>(input.at(n, group * in_per_group + i, y, x)) *
                     node.weights.get()[index];
            }
          });
          if (node.operation == Operation::max_pool) sum = largest;
          if (node.operation == Operation::average_pool) sum /= w.area(oy, ox, input.height, input.width);
          output.at(n, c, oy, ox) = static_cast<float>(sum);
        }
  return output;
}

Array global_average(const Array& input) {
  Array output = make(input.images, input.channels, 1, 1);
  for (int n = 0; n < input.images; ++n)
    for (int c = 0; c < input.channels; ++c) {
      double sum = 0;
      for (int y = 0; y < input.height; ++y)
        for (int x = 0; x < input.width; ++x) sum += input.at(n, c, y, x);
      output.at(n, c, 0, 0) = static_cast<float>(sum / (input.height * input.width));
    }
  return output;
}

}  // namespace

std::vector<Array> run_reference(const Network& network, const Array& input, bool bfloat16) {
  std::vector<Array> values(network.values);
  std::vector<bool> added(network.values, false);  // by an epilogue that has not rounded yet
  for (const Node& node : network.nodes)
    if (node.operation == Operation::add)
      for (int value : node.inputs) added[value] = true;
  const auto round = [&](Array& array) {
    for (float& value : array.values) value = from_bfloat16(to_bfloat16(value));
  };
  values[network.input] = input;
  if (bfloat16) round(values[network.input]);
  for (const Node& node : network.nodes) {
    const Array& first = values[node.inputs.at(0)];
    Array result;
    switch (node.operation) {
      case Operation::other: break;
      case Operation::convolution:
      case Operation::linear:
      case Operation::max_pool:
      case Operation::average_pool: result = windowed(node, first); break;
      case Operation::global_average_pool: result = global_average(first); break;
      case Operation::flatten: result = first; break;
      case Operation::relu:
        result = first;
        for (float& value : result.values) value = std::max(value, 0.0f);
        break;
      case Operation::add:
        result = first;
        for (std::size_t i = 0; i < result.values.size(); ++i)
          result.values[i] += values[node.inputs.at(1)].values[i];
        break;
    }
    if (bfloat16 && node.output != network.output &&
        !(node.operation == Operation::convolution && added[node.output]))
      round(result);
    values[node.output] = std::move(result);
  }
  return values;
}

}  // namespace swsl::cpu
