#include "engine/plan/pack.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "engine/bfloat16.h"
#include "threads/thread_pool.h"

namespace swsl::cpu {
namespace {

void put(char* step, int part, float value, bool bfloat16) {
  if (bfloat16) {
    const std::uint16_t narrow = to_bfloat16(value);
    std::memcpy(step + part * 2, &narrow, sizeof narrow);
  } else {
    std::memcpy(step, &value, sizeof value);
  }
}

int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

class Packer {
 public:
  Packer(const Layer& layer, const KernelSet& kernels, bool first)
      : layer_(layer),
        kernels_(kernels),
        parts_(kernels.bfloat16 ? 2 : 1),
        in_per_group_(layer.in_channels / layer.groups),
        out_per_group_(layer.out_channels / layer.groups),
        taps_(layer.window.kernel_height * layer.window.kernel_width),
        matrix_(kernels.matrix_tile != nullptr) {
    packed_.kernel = first                ? ConvolutionKernel::first
                     : fits_grouped_row() ? ConvolutionKernel::grouped_row
                                          : ConvolutionKernel::tile;
    channels_ = round_up(layer.out_channels, kernels.line_channels());
    packed_.bias.assign(channels_ + 2 * vector_width, 0.0f);
    if (layer.bias) std::copy_n(layer.bias.get(), layer.out_channels, packed_.bias.begin());
    for (int channel = 0; channel < channels_;) {
      Panel panel = panel_at(channel, 1);
      const bool whole_lines =
          channel % kernels.line_channels() == 0 && channel + 2 * vector_width <= channels_;
      if (kernels.max_vectors == 2 && whole_lines && packed_.kernel != ConvolutionKernel::grouped_row) {
        const Panel wide = panel_at(channel, 2), next = panel_at(channel + vector_width, 1);
        if (matrix_ || cost(wide) <= cost(panel) + cost(next)) panel = wide;
      }
      panel.weights = packed_.bytes;
      packed_.bytes += static_cast<std::ptrdiff_t>(panel.blocks) * panel.steps * panel.vectors * line_bytes;
      packed_.panels.push_back(panel);
      channel += panel.vectors * vector_width;
    }
    if (packed_.kernel == ConvolutionKernel::grouped_row) fill_permutations();
  }

  PackedConvolution take() { return std::move(packed_); }

  static void fill(const Layer& layer, const KernelSet& kernels, const PackedConvolution& packed,
                   const Panel& panel, char* to) {
    const int parts = kernels.bfloat16 ? 2 : 1;
    const int taps = layer.window.kernel_height * layer.window.kernel_width;
    const int in_per_group = layer.in_channels / layer.groups,
              out_per_group = layer.out_channels / layer.groups;
    const int width = panel.vectors * vector_width;
    // Of each output channel: its weights, and the input channels that they are of, counted as the kernel
    // counts them. The rest are zeros.
    struct Lane {
      const float* weights = nullptr;
      int begin = 0, end = 0;
    };
    Lane lanes[2 * vector_width];
    for (int lane = 0; lane < width; ++lane) {
      const int out = panel.first_channel + lane;
      if (out >= layer.out_channels) continue;
      const int begin = packed.kernel == ConvolutionKernel::tile ? out / out_per_group * in_per_group : 0;
      lanes[lane] = {layer.weights.get() + static_cast<std::ptrdiff_t>(out) * in_per_group * taps, begin,
                     begin + in_per_group};
    }
    for (int block = 0; block < panel.blocks; ++block)
      for (int step = 0; step < panel.steps; ++step, to += width * step_bytes)
        for (int part = 0; part < parts; ++part) {
          int in = 0, tap = 0;
          if (packed.kernel == ConvolutionKernel::tile) {
            in = ((panel.first_block + block / taps) * line_steps + panel.first_step + step) * parts + part;
            tap = block % taps;
          } else if (packed.kernel == ConvolutionKernel::first) {
            const int per_row = panel.blocks / layer.window.kernel_height;
            const int at = (block % per_row * panel.steps + step) * parts + part,
                      column = at / layer.in_channels;
            in = column < layer.window.kernel_width ? at % layer.in_channels : layer.in_channels;
            tap = block / per_row * layer.window.kernel_width + column;
          } else {  // blocks are (kernel row, step), steps are kernel columns
            const int per_row = panel.blocks / 3;
            in = block % per_row * parts + part;
            tap = block / per_row * 3 + step;
          }
          for (int lane = 0; lane < width; ++lane) {
            const auto& [weights, begin, end] = lanes[lane];
            const bool there = in >= begin && in < end;
            put(to + lane * step_bytes, part,
                there ? weights[(in - begin) * std::ptrdiff_t{taps} + tap] : 0.0f, kernels.bfloat16);
          }
        }
  }

 private:
  static double cost(const Panel& panel) {
    return static_cast<double>(panel.vectors) * panel.blocks * panel.steps;
  }

  bool fits_grouped_row() const {
    const Window& w = layer_.window;
    return !matrix_ && layer_.groups > 1 && in_per_group_ == out_per_group_ && layer_.residual < 0 &&
           w.kernel_height == 3 && w.kernel_width == 3 && w.stride_height == w.stride_width &&
           w.stride_height <= 2 && w.dilation_height == 1 && w.dilation_width == 1 &&
           (in_per_group_ == 4 || in_per_group_ == 8) && layer_.out_channels % kernels_.line_channels() == 0;
  }

  Panel panel_at(int channel, int vectors) const {
    Panel panel{vectors, channel, 0, 0, 0, 0, 0};
    if (packed_.kernel == ConvolutionKernel::first) {
      panel.blocks = layer_.window.kernel_height;
      panel.steps = (layer_.window.kernel_width * layer_.in_channels + parts_ - 1) / parts_;
      if (matrix_) {
        panel.blocks *= round_up(panel.steps, line_steps) / line_steps;
        panel.steps = line_steps;
      }
      return panel;
    }
    if (packed_.kernel == ConvolutionKernel::grouped_row) {
      panel.first_block = channel / kernels_.line_channels();
      panel.blocks = 3 * in_per_group_ / parts_;
      panel.steps = 3;
      return panel;
    }
    const int last_channel = std::min(channel + vectors * vector_width, layer_.out_channels) - 1;
    const int first_group = std::min(channel, last_channel) / out_per_group_,
              last_group = last_channel / out_per_group_;
    const int begin = first_group * in_per_group_ / parts_;
    const int end = ((last_group + 1) * in_per_group_ + parts_ - 1) / parts_;
    panel.first_block = begin / line_steps;
    const int last_block = (end - 1) / line_steps;
    panel.blocks = (last_block - panel.first_block + 1) * taps_;
    panel.steps = line_steps;
    if (last_block == panel.first_block && !matrix_) {
      panel.first_step = begin % line_steps;
      panel.steps = end - begin;
    }
    return panel;
  }

  void fill_permutations() {
    for (int vector = 0; vector < kernels_.line_vectors(); ++vector)
      for (int step = 0; step < in_per_group_ / parts_; ++step)
        for (int lane = 0; lane < vector_width; ++lane) {
          const int group = (vector * vector_width + lane) / out_per_group_;
          packed_.permutations.push_back(group * in_per_group_ / parts_ + step);
        }
  }

  const Layer& layer_;
  const KernelSet& kernels_;
  int parts_, in_per_group_, out_per_group_, taps_, channels_ = 0;
  bool matrix_;
  PackedConvolution packed_;
};

}  // namespace

PackedNetwork pack(FusedNetwork network, const KernelSet& kernels, ThreadPool& threads) {
  PackedNetwork packed{&kernels, std::move(network), {}, nullptr, 0};
  std::vector<std::pair<int, const Panel*>> work;
  std::ptrdiff_t total = 0, stored = 0;
  for (const Layer& layer : packed.network.layers) {
    packed.convolutions.emplace_back();
    if (layer.operation != Operation::convolution) continue;
    auto& convolution = packed.convolutions.back();
    convolution = Packer(layer, kernels, layer.input == packed.network.input).take();
    for (auto& panel : convolution.panels) panel.weights += total;
    total += convolution.bytes;
    const auto& w = layer.window;
    stored += std::ptrdiff_t{4} * layer.out_channels * (layer.in_channels / layer.groups) * w.kernel_height *
              w.kernel_width;
  }
  // Groups of a single channel are packed with fifteen zeros for each weight: a small file must not take a
  // large one's memory.
  if (total > 4 * stored + (std::ptrdiff_t{64} << 20))
    throw UnsupportedNetwork("room for weights that are packed with " +
                             std::to_string(total / std::max<std::ptrdiff_t>(stored, 1)) +
                             " times their size");
  for (std::size_t i = 0; i < packed.convolutions.size(); ++i)
    for (const auto& panel : packed.convolutions[i].panels) work.emplace_back(static_cast<int>(i), &panel);
  packed.weight_bytes = total;
  // Prefetching may run past the last panel's end.
  packed.weights = allocate(total + 4096);
  std::atomic<std::size_t> next{0};
  threads.run([&](int) {
    for (std::size_t i; (i = next.fetch_add(1)) < work.size();) {
      const auto [index, panel] = work[i];
      Packer::fill(packed.network.layers[index], kernels, packed.convolutions[index], *panel,
                   packed.weights.get() + panel->weights);
    }
  });
  for (auto& layer : packed.network.layers) {
    layer.weights.reset();
    layer.bias.reset();
  }
  return packed;
}

}  // namespace swsl::cpu
