#include "libtorch/cuda/engine/network.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <stdexcept>
#include <tuple>

#include <ATen/ATen.h>
#include <c10/cuda/CUDAStream.h>

#include "libtorch/cuda/check.h"
#include "libtorch/cuda/engine/graph.h"
#include "libtorch/cuda/engine/kernels.h"

namespace swsl::cuda {
namespace {

using cpu::Layer;

Number number(at::ScalarType dtype) {
  return dtype == at::kFloat ? Number::float32 : dtype == at::kHalf ? Number::float16 : Number::bfloat16;
}

std::array<std::int64_t, 2> two(int a, int b) { return {a, b}; }

bool is_pointwise(const Layer& layer) { return layer.window == Window{} && layer.groups == 1; }

bool is_narrow_grouped(const Layer& layer) {
  Window window{3, 3, 1, 1, 1, 1, 1, 1};
  window.stride_height = window.stride_width = layer.window.stride_height;
  return layer.window == window && layer.in_channels == layer.out_channels &&
         is_grouped_case(layer.in_channels, layer.groups, layer.window.stride_height);
}

// N×C×H×W in channels-last order as (N·H·W)×C, the same memory.
at::Tensor as_matrix(const at::Tensor& image) {
  return image.permute({0, 2, 3, 1}).reshape({-1, image.size(1)});
}

// Methods round differently, hence the room; what is wrong is wrong by more.
bool agree(const at::Tensor& a, const at::Tensor& b) {
  const auto [least, most] = at::aminmax(b);
  const float allowed = 0.03f * std::max(std::abs(least.item<float>()), std::abs(most.item<float>())) + 1e-6f;
  const std::int64_t slice = std::max<std::int64_t>(1, b.size(0) / 8);  // at a time, for memory's sake
  for (std::int64_t begin = 0; begin < b.size(0); begin += slice) {
    const auto part = [&](const at::Tensor& t) {
      return t.narrow(0, begin, std::min(slice, b.size(0) - begin)).to(at::kFloat);
    };
    if (!((part(a) - part(b)).abs_().max().item<float>() <= allowed)) return false;  // nor if it is NaN
  }
  return true;
}

// Layers that are the same to whoever computes them: a network has few such kinds.
using Kind = std::tuple<std::vector<std::int64_t>, int, int, std::array<int, 8>, bool, bool>;

Kind kind_of(const Layer& layer, const at::Tensor& input) {
  const Window& w = layer.window;
  return {input.sizes().vec(),
          layer.out_channels,
          layer.groups,
          {w.kernel_height, w.kernel_width, w.stride_height, w.stride_width, w.pad_height, w.pad_width,
           w.dilation_height, w.dilation_width},
          layer.relu,
          layer.residual >= 0};
}

std::string shape_of(const at::Tensor& tensor) {
  std::string text;
  for (std::int64_t i = 1; i < tensor.dim(); ++i) text += (i > 1 ? "×" : "") + std::to_string(tensor.size(i));
  return text;
}

}  // namespace

const char* name(Method method) {
  switch (method) {
    case Method::plain: return "cuDNN and epilogue";
    case Method::fused: return "cuDNN fused";
    case Method::matrix: return "cuBLAS";
    case Method::grouped_small: return "grouped tiles, small";
    case Method::grouped_large: return "grouped tiles, large";
  }
  return "";
}

DeviceNetwork::DeviceNetwork(cpu::FusedNetwork network, at::Device device, at::ScalarType dtype, bool tf32)
    : last_use_(static_cast<std::size_t>(network.values), 0),
      input_(network.input),
      output_(network.output),
      dtype_(dtype),
      tf32_(tf32) {
  features_ = network.layers.back().input;  // as `read_model` has made sure
  for (auto& layer : network.layers) {
    Step step;
    if (layer.operation == Operation::convolution) {
      const auto on_device = [&](const float* data, at::IntArrayRef sizes) {
        return at::from_blob(const_cast<float*>(data), sizes, at::kFloat).to(device);
      };
      const std::int64_t out = layer.out_channels, in = layer.in_channels / layer.groups;
      step.weight =
          on_device(layer.weights.get(), {out, in, layer.window.kernel_height, layer.window.kernel_width})
              .to(dtype)
              .contiguous(at::MemoryFormat::ChannelsLast);
      step.bias32 = layer.bias ? on_device(layer.bias.get(), {out})
                               : at::zeros({out}, at::TensorOptions(device).dtype(at::kFloat));
      step.bias = step.bias32.to(dtype);
      if (dtype != at::kFloat && is_narrow_grouped(layer)) {
        const auto packed = pack_grouped(layer.weights.get(), layer.out_channels, static_cast<int>(in));
        step.grouped = on_device(packed.data(), {static_cast<std::int64_t>(packed.size())}).to(dtype);
      }
      layer.weights.reset();
      layer.bias.reset();
    }
    last_use_[static_cast<std::size_t>(layer.input)] = steps_.size();
    if (layer.residual >= 0) last_use_[static_cast<std::size_t>(layer.residual)] = steps_.size();
    step.layer = std::move(layer);
    steps_.push_back(std::move(step));
  }
  for (const int kept : {output_, features_})
    last_use_[static_cast<std::size_t>(kept)] = std::numeric_limits<std::size_t>::max();
}

void DeviceNetwork::add_epilogue(const Step& step, at::Tensor& output, const at::Tensor& residual) const {
  output = output.contiguous(at::MemoryFormat::ChannelsLast);
  at::Tensor added;
  if (residual.defined()) added = residual.contiguous(at::MemoryFormat::ChannelsLast);
  check(run_epilogue(number(dtype_), output.data_ptr(), step.bias32.const_data_ptr<float>(),
                     added.defined() ? added.data_ptr() : nullptr, output.numel() / output.size(1),
                     static_cast<int>(output.size(1)), step.layer.relu, c10::cuda::getCurrentCUDAStream()));
}

at::Tensor DeviceNetwork::convolve(const Step& step, Method method, const at::Tensor& input,
                                   const at::Tensor& residual) const {
  const Layer& layer = step.layer;
  const Window& w = layer.window;
  const auto stride = two(w.stride_height, w.stride_width), padding = two(w.pad_height, w.pad_width);
  const auto dilation = two(w.dilation_height, w.dilation_width);
  switch (method) {
    case Method::plain: {
      auto output = at::cudnn_convolution(
          input, step.weight, padding, stride, dilation, layer.groups, /*benchmark=*/true,
          /*deterministic=*/false, /*allow_tf32=*/tf32_ || dtype_ != at::kFloat);
      add_epilogue(step, output, residual);
      return output;
    }
    case Method::fused:
      if (residual.defined())
        return at::cudnn_convolution_add_relu(input, step.weight, residual, 1.0, step.bias, stride, padding,
                                              dilation, layer.groups);
      return at::cudnn_convolution_relu(input, step.weight, step.bias, stride, padding, dilation,
                                        layer.groups);
    case Method::matrix: {
      const auto pixels = as_matrix(input),
                 weight = step.weight.reshape({layer.out_channels, layer.in_channels}).t();
      at::Tensor rows = residual.defined() ? at::mm(pixels, weight)
                        : layer.relu       ? at::_addmm_activation(step.bias, pixels, weight)
                                           : at::addmm(step.bias, pixels, weight);
      at::Tensor output =
          rows.view({input.size(0), input.size(2), input.size(3), layer.out_channels}).permute({0, 3, 1, 2});
      if (residual.defined()) add_epilogue(step, output, residual);
      return output;
    }
    case Method::grouped_small:
    case Method::grouped_large: {
      const std::size_t budget =
          method == Method::grouped_small ? std::size_t{24} << 10 : std::size_t{48} << 10;
      const auto from = input.contiguous(at::MemoryFormat::ChannelsLast);
      const auto shape =
          make_grouped_shape(static_cast<int>(from.size(0)), static_cast<int>(from.size(2)),
                             static_cast<int>(from.size(3)), layer.in_channels, w.stride_height, budget);
      auto output = at::empty({from.size(0), layer.out_channels, shape.out_height, shape.out_width},
                              from.options().memory_format(at::MemoryFormat::ChannelsLast));
      check(run_grouped(number(dtype_), shape, from.data_ptr(), step.grouped.data_ptr(),
                        step.bias32.const_data_ptr<float>(), layer.relu, output.data_ptr(),
                        c10::cuda::getCurrentCUDAStream()));
      return output;
    }
  }
  throw std::logic_error("an unknown method");
}

// cuDNN's fused operations and cuBLAS take TF32 as LibTorch's global switches say, so that float32 is left to
// `plain`.
std::vector<Method> DeviceNetwork::candidates(const Step& step) const {
  std::vector<Method> result{Method::plain};
  if (dtype_ == at::kFloat) return result;
  if (step.layer.relu) result.push_back(Method::fused);
  if (is_pointwise(step.layer)) result.push_back(Method::matrix);
  if (step.grouped.defined() && step.layer.residual < 0) {
    result.push_back(Method::grouped_small);
    result.push_back(Method::grouped_large);
  }
  return result;
}

// convolve(index, input, residual) computes step `index`, pools included.
template <typename Convolve>
TensorOutputs DeviceNetwork::walk(const at::Tensor& input, const Convolve& convolve) const {
  std::vector<at::Tensor> values(last_use_.size());
  values[static_cast<std::size_t>(input_)] = input;
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    const Layer& layer = steps_[i].layer;
    auto &from = values[static_cast<std::size_t>(layer.input)],
         &to = values[static_cast<std::size_t>(layer.output)];
    const at::Tensor residual =
        layer.residual >= 0 ? values[static_cast<std::size_t>(layer.residual)] : at::Tensor();
    to = convolve(i, from, residual);
    // Memory that nobody reads any more goes back, for the next layers to use.
    for (const int value : {layer.input, layer.residual})
      if (value >= 0 && last_use_[static_cast<std::size_t>(value)] == i)
        values[static_cast<std::size_t>(value)].reset();
  }
  const auto flat = [&](int value) {
    return values[static_cast<std::size_t>(value)].flatten(1).to(at::kFloat);
  };
  return {flat(output_), flat(features_)};
}

namespace {

at::Tensor max_pool(const Window& w, const at::Tensor& input) {
  const auto from = input.contiguous(at::MemoryFormat::ChannelsLast);
  const auto size = [&](int dimension) { return static_cast<int>(from.size(dimension)); };
  const PoolShape shape{size(0),
                        size(2),
                        size(3),
                        size(1),
                        (size(2) + 2 * w.pad_height - w.kernel_height) / w.stride_height + 1,
                        (size(3) + 2 * w.pad_width - w.kernel_width) / w.stride_width + 1,
                        w.kernel_height,
                        w.kernel_width,
                        w.stride_height,
                        w.stride_width,
                        w.pad_height,
                        w.pad_width};
  auto output = at::empty({shape.images, shape.channels, shape.out_height, shape.out_width},
                          from.options().memory_format(at::MemoryFormat::ChannelsLast));
  check(run_max_pool(number(from.scalar_type()), shape, from.const_data_ptr(), output.data_ptr(),
                     c10::cuda::getCurrentCUDAStream()));
  return output;
}

at::Tensor pool(const Layer& layer, const at::Tensor& input) {
  const Window& w = layer.window;
  const auto kernel = two(w.kernel_height, w.kernel_width), stride = two(w.stride_height, w.stride_width),
             padding = two(w.pad_height, w.pad_width);
  if (layer.operation == Operation::max_pool) return max_pool(w, input);
  if (layer.operation == Operation::average_pool)
    return at::avg_pool2d(input, kernel, stride, padding, w.ceil_mode);
  if (layer.operation == Operation::global_average_pool) return input.mean({2, 3}, /*keepdim=*/true);
  throw cpu::UnsupportedNetwork(layer.name);
}

}  // namespace

TensorOutputs DeviceNetwork::run(const at::Tensor& input, const Methods& methods,
                                 std::vector<LayerTime>* times) const {
  std::optional<GpuTimer> timer;
  if (times != nullptr) timer.emplace();
  return walk(input, [&](std::size_t i, const at::Tensor& from, const at::Tensor& residual) {
    const Layer& layer = steps_[i].layer;
    const bool is_convolution = layer.operation == Operation::convolution;
    at::Tensor to;
    const auto work = [&] {
      to = is_convolution ? convolve(steps_[i], methods.at(i).method, from, residual) : pool(layer, from);
    };
    work();
    if (times == nullptr) return to;
    LayerTime time;
    const at::Tensor result = to;  // what a graph computes is not there before it is run
    time.seconds = (*timer)(work);
    to = result;
    time.kernel = is_convolution ? name(methods.at(i).method) : layer.name;
    if (is_convolution) time.ways = methods.at(i).ways;
    time.shape = shape_of(from) + " → " + shape_of(to);
    if (is_convolution)
      time.multiply_adds = static_cast<double>(to.numel()) * layer.in_channels / layer.groups *
                           layer.window.kernel_height * layer.window.kernel_width;
    times->push_back(time);
    return to;
  });
}

std::vector<Method> DeviceNetwork::convolutions(const Methods& methods) const {
  std::vector<Method> result;
  for (std::size_t i = 0; i < steps_.size(); ++i)
    if (steps_[i].layer.operation == Operation::convolution) result.push_back(methods.at(i).method);
  return result;
}

Methods DeviceNetwork::choose(const at::Tensor& input, std::string& notes) const {
  GpuTimer timer;
  Methods methods(steps_.size());
  std::map<Kind, Choice> known;
  walk(input, [&](std::size_t i, const at::Tensor& from, const at::Tensor& residual) {
    const Step& step = steps_[i];
    if (step.layer.operation != Operation::convolution) return pool(step.layer, from);
    const auto [same, fresh] = known.try_emplace(kind_of(step.layer, from));
    Choice& choice = same->second;
    if (!fresh) {
      methods[i] = choice;
      return convolve(step, choice.method, from, residual);
    }
    const at::Tensor expected = convolve(step, Method::plain, from, residual);
    double best = std::numeric_limits<double>::infinity();
    for (const Method method : candidates(step)) {
      LayerWay& way = choice.ways.emplace_back();
      way.kernel = name(method);
      try {
        const at::Tensor result = convolve(step, method, from, residual);  // and warms up
        if (!agree(result, expected)) {
          way.trouble = "computed something else";
          const std::string note = way.kernel + " computed something else and is out";
          if (notes.find(note) == std::string::npos) notes += "; " + note;
          continue;
        }
        way.seconds = timer([&] { convolve(step, method, from, residual); });
        if (way.seconds < best) {
          best = way.seconds;
          choice.method = method;
        }
      } catch (const c10::OutOfMemoryError&) {
        throw;
      } catch (const std::exception& error) {  // this library or card has no such kernel for this shape;
                                               // `plain` has run already
        cudaGetLastError();
        way.trouble = error.what();
        way.trouble.resize(std::min<std::size_t>({way.trouble.size(), way.trouble.find('\n'), 300}));
      }
    }
    methods[i] = choice;
    return expected;
  });
  return methods;
}

}  // namespace swsl::cuda
