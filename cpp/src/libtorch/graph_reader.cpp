#include "libtorch/graph_reader.h"

#include <set>
#include <string_view>
#include <unordered_map>

#include <ATen/ATen.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>

namespace swsl::cpu {
namespace {

using torch::jit::Graph;
using torch::jit::Value;
using GraphNode = torch::jit::Node;  // `Node` is the engine's

[[noreturn]] void refuse(const GraphNode* node, const std::string& why) {
  throw UnsupportedNetwork(node->kind().toQualString() + (why.empty() ? "" : " " + why));
}

std::shared_ptr<const float> floats(const at::Tensor& tensor) {
  auto held = std::make_shared<at::Tensor>(tensor.to(at::kCPU, at::kFloat).contiguous());
  return {held, held->const_data_ptr<float>()};
}

// Reads one graph; constants are looked up by the position of the operator's argument.
class Reader {
 public:
  explicit Reader(const Graph& graph) {
    if (graph.inputs().size() != 2 || !graph.inputs()[0]->uses().empty() || graph.outputs().size() != 1)
      throw UnsupportedNetwork("a method that is not frozen or takes more than a batch");
    network_.input = number(graph.inputs()[1]);
    need(graph.outputs()[0]);
    for (const auto* node : graph.nodes()) {
      if (needed_.count(node))
        read(node);
      else
        check_harmless(node);
    }
    network_.output = number(graph.outputs()[0]);
  }

  Network take() { return std::move(network_); }

 private:
  // What the result depends on; assertions about ranks and the like fall away, for the plan checks shapes
  // itself.
  void need(const Value* value) {
    const auto* node = value->node();
    if (!needed_.insert(node).second) return;
    for (const auto* input : node->inputs()) need(input);
  }

  void check_harmless(const GraphNode* node) {
    if (std::string_view(node->kind().toUnqualString()).ends_with('_'))
      refuse(node, "whose result is not used");
    for (const auto* block : node->blocks())
      for (const auto* inner : block->nodes()) check_harmless(inner);
  }

  int number(const Value* value) {
    const auto [entry, fresh] = numbers_.try_emplace(value, network_.values);
    if (fresh) ++network_.values;
    return entry->second;
  }

  static c10::IValue constant(const GraphNode* node, std::size_t index) {
    const Value* argument = node->input(index);
    if (const auto value = torch::jit::toIValue(argument)) return *value;
    if (argument->node()->kind() != torch::jit::prim::ListConstruct)
      refuse(node, "with an argument that is not a constant");
    std::vector<std::int64_t> list;  // of integers, the only lists that the operators here take
    for (std::size_t i = 0; i < argument->node()->inputs().size(); ++i) {
      const auto item = constant(argument->node(), i);
      if (!item.isInt()) refuse(node, "with a list of other things than integers");
      list.push_back(item.toInt());
    }
    return list;
  }

  // Two integers; one stands for both.
  static std::pair<int, int> pair(const GraphNode* node, std::size_t index) {
    const auto value = constant(node, index);
    if (value.isInt()) return {static_cast<int>(value.toInt()), static_cast<int>(value.toInt())};
    if (!value.isIntList() || value.toIntVector().empty() || value.toIntVector().size() > 2)
      refuse(node, "that is not two-dimensional");
    const auto list = value.toIntVector();
    return {static_cast<int>(list.front()), static_cast<int>(list.back())};
  }

  static at::Tensor weights(const GraphNode* node, std::size_t index, std::int64_t rank) {
    const auto value = constant(node, index);
    if (!value.isTensor() || value.toTensor().dim() != rank || !value.toTensor().is_floating_point())
      refuse(node, "with weights of an unexpected kind");
    return value.toTensor();
  }

  static void read_bias(const GraphNode* node, std::size_t index, Node& to) {
    if (!constant(node, index).isNone()) to.bias = floats(weights(node, index, 1));
  }

  void read(const GraphNode* node) {
    const std::string_view kind = node->kind().toQualString();
    if (kind == "prim::Constant" || kind == "prim::Param" || kind == "prim::ListConstruct") return;
    Node out{};
    out.name = kind;
    std::size_t values = 1;  // inputs that are activations
    if (kind == "aten::conv2d") {
      read_convolution(node, out);
    } else if (kind == "aten::linear") {
      const auto weight = weights(node, 1, 2);
      out.operation = Operation::linear;
      out.out_channels = static_cast<int>(weight.size(0));
      out.in_channels = static_cast<int>(weight.size(1));
      out.weights = floats(weight);
      read_bias(node, 2, out);
    } else if (kind == "aten::relu" || kind == "aten::relu_") {
      out.operation = Operation::relu;
    } else if (kind == "aten::add" || kind == "aten::add_") {
      if (node->inputs().size() != 3 || !constant(node, 2).isInt() || constant(node, 2).toInt() != 1)
        refuse(node, "that scales");
      out.operation = Operation::add;
      values = 2;
    } else if (kind == "aten::max_pool2d" || kind == "aten::avg_pool2d") {
      read_pool(node, out, kind == "aten::max_pool2d");
    } else if (kind == "aten::adaptive_avg_pool2d") {
      if (pair(node, 1) != std::pair{1, 1}) refuse(node, "to more than one pixel");
      out.operation = Operation::global_average_pool;
    } else if (kind == "aten::flatten") {
      if (constant(node, 1).toInt() != 1 ||
          (constant(node, 2).toInt() != -1 && constant(node, 2).toInt() != 3))
        refuse(node, "of other dimensions than 1 to 3");
      out.operation = Operation::flatten;
    } else {
      refuse(node, "");
    }
    out.in_place = kind.ends_with('_');
    for (std::size_t i = 0; i < values; ++i) {
      if (!numbers_.count(node->input(i))) refuse(node, "of a constant");
      out.inputs.push_back(numbers_.at(node->input(i)));
    }
    out.output = number(node->output());
    network_.nodes.push_back(std::move(out));
  }

  static void read_convolution(const GraphNode* node, Node& out) {
    if (constant(node, 4).isString()) refuse(node, "with padding given as a word");
    const auto weight = weights(node, 1, 4);
    out.operation = Operation::convolution;
    out.groups = static_cast<int>(constant(node, 6).toInt());
    out.out_channels = static_cast<int>(weight.size(0));
    out.in_channels = static_cast<int>(weight.size(1)) * out.groups;
    out.window.kernel_height = static_cast<int>(weight.size(2));
    out.window.kernel_width = static_cast<int>(weight.size(3));
    std::tie(out.window.stride_height, out.window.stride_width) = pair(node, 3);
    std::tie(out.window.pad_height, out.window.pad_width) = pair(node, 4);
    std::tie(out.window.dilation_height, out.window.dilation_width) = pair(node, 5);
    out.weights = floats(weight);
    read_bias(node, 2, out);
  }

  static void read_pool(const GraphNode* node, Node& out, bool maximum) {
    out.operation = maximum ? Operation::max_pool : Operation::average_pool;
    std::tie(out.window.kernel_height, out.window.kernel_width) = pair(node, 1);
    const auto stride = constant(node, 2);
    const bool given = stride.isInt() || (stride.isIntList() && !stride.toIntVector().empty());
    std::tie(out.window.stride_height, out.window.stride_width) = pair(node, given ? 2 : 1);
    std::tie(out.window.pad_height, out.window.pad_width) = pair(node, 3);
    if (maximum) {
      if (pair(node, 4) != std::pair{1, 1} || constant(node, 5).toBool())
        refuse(node, "with dilation or ceil_mode");
    } else if (constant(node, 4).toBool() || !constant(node, 6).isNone() ||
               (!constant(node, 5).toBool() && (out.window.pad_height > 0 || out.window.pad_width > 0))) {
      refuse(node, "with ceil_mode, a divisor or uncounted padding");
    }
  }

  Network network_;
  std::set<const GraphNode*> needed_;
  std::unordered_map<const Value*, int> numbers_;
};

FusedNetwork read_method(const FrozenModel& model, const char* method) {
  return fuse(Reader(*model.module().get_method(method).graph()).take());
}

// The layer that makes `value`, −1 for the batch, so that layers of two networks can be compared.
int maker(const FusedNetwork& network, int value) {
  for (std::size_t i = 0; i < network.layers.size(); ++i)
    if (network.layers[i].output == value) return static_cast<int>(i);
  return -1;
}

}  // namespace

FusedNetwork read_model(const FrozenModel& model) {
  FusedNetwork forward = read_method(model, "forward");
  const FusedNetwork embed = read_method(model, "embed");
  bool same = embed.layers.size() + 1 == forward.layers.size() &&
              embed.output == embed.layers.back().output &&
              forward.layers.back().input == forward.layers[embed.layers.size() - 1].output;
  for (std::size_t i = 0; same && i < embed.layers.size(); ++i) {
    const Layer &a = forward.layers[i], &b = embed.layers[i];
    same = a.operation == b.operation && a.weights.get() == b.weights.get() && a.bias.get() == b.bias.get() &&
           a.relu == b.relu && a.groups == b.groups && a.window == b.window &&
           maker(forward, a.input) == maker(embed, b.input) && (a.residual < 0) == (b.residual < 0) &&
           (a.residual < 0 || maker(forward, a.residual) == maker(embed, b.residual));
  }
  if (!same) throw UnsupportedNetwork("a method embed that is not forward without its last layer");
  return forward;
}

}  // namespace swsl::cpu
