// The frozen graph on LibTorch's interpreter, without the graph executor that `Module::forward` goes through:
// no profiling runs whose first calls are slow, no specialisation per shape, no global switch of LibTorch
// touched.
//
// Memory stays flat because oneDNN keeps its compiled primitives per shape: batches are computed in parts of
// 1, 2, 4, … max_batch images, so that only a handful of shapes exist whatever the callers bring, and nothing
// is padded.

#include "libtorch/torchscript.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <map>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/passes/frozen_ops_to_mkldnn.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/runtime/interpreter.h>

#include <swsl/libtorch/tensors.h>

#include "engine/batch_check.h"
#include "libtorch/forward_thread.h"
#include "libtorch/parts.h"
#include "libtorch/tensor_engine.h"
#include "model/network.h"

namespace swsl {
namespace {

using torch::jit::Graph;

// oneDNN's fast convolutions want 16-bit activations in channels-last order and float32 ones in blocks of
// channels, which the pass of LibTorch that builds `mkldnn` graphs arranges, weights packed once. As it has
// computed wrong results in past releases, it stays only if the golden check agrees.
enum class Form { plain, channels_last, blocked };

// A tensor used twice stays one tensor after the conversion.
using Converted = std::unordered_map<const c10::TensorImpl*, at::Tensor>;

void convert_constants(torch::jit::Block* block, const EngineOptions& options, Form form,
                       Converted& converted) {
  for (auto* node : block->nodes()) {
    for (auto* inner : node->blocks()) convert_constants(inner, options, form, converted);
    if (node->kind() != torch::jit::prim::Constant || !node->hasAttribute(torch::jit::attr::value) ||
        node->kindOf(torch::jit::attr::value) != torch::jit::AttributeKind::t)
      continue;
    const at::Tensor& original = node->t(torch::jit::attr::value);
    if (!original.is_floating_point()) continue;
    auto [entry, fresh] = converted.try_emplace(original.unsafeGetTensorImpl());
    if (fresh) {
      entry->second = original.to(at::Device(options.device), scalar_type(*options.dtype));
      if (form == Form::channels_last && original.dim() == 4)
        entry->second = entry->second.contiguous(at::MemoryFormat::ChannelsLast);
    }
    node->t_(torch::jit::attr::value, entry->second);
  }
}

// Whether two values of two graphs are computed by the same operators from the same input and constants.
class SameComputation {
 public:
  bool operator()(const torch::jit::Value* a, const torch::jit::Value* b) {
    const auto [entry, fresh] = known_.try_emplace({a, b}, false);
    if (fresh) entry->second = compare(a, b);  // std::map: inserting more leaves `entry` valid
    return entry->second;
  }

 private:
  bool compare(const torch::jit::Value* a, const torch::jit::Value* b) {
    const auto *node_a = a->node(), *node_b = b->node();
    if (node_a->kind() != node_b->kind() || a->offset() != b->offset()) return false;
    if (node_a->kind() == torch::jit::prim::Param) return true;
    if (node_a->kind() == torch::jit::prim::Constant) {
      const auto value_a = torch::jit::toIValue(a), value_b = torch::jit::toIValue(b);
      return value_a && value_b && (value_a->isTensor() ? value_a->is(*value_b) : *value_a == *value_b);
    }
    if (!node_a->blocks().empty() || node_a->inputs().size() != node_b->inputs().size()) return false;
    for (std::size_t i = 0; i < node_a->inputs().size(); ++i)
      if (!(*this)(node_a->input(i), node_b->input(i))) return false;
    return true;
  }

  std::map<std::pair<const torch::jit::Value*, const torch::jit::Value*>, bool> known_;
};

// The value in the graph of `forward` that `embed` would return, or null.
torch::jit::Value* find_embedding(Graph& forward, const Graph& embed) {
  SameComputation same;
  for (auto* node : forward.nodes())
    for (auto* value : node->outputs())
      if (same(embed.outputs()[0], value)) {
        for (const auto& use : value->uses())  // an operator that works in place would change it later
          if (std::string_view(use.user->kind().toUnqualString()).ends_with('_')) return nullptr;
        return value;
      }
  return nullptr;
}

// A method's graph without `self`: frozen, so nothing reads it, and the module's memory can be given back.
std::shared_ptr<Graph> graph_of(const FrozenModel& model, const torch::jit::Module& module,
                                const char* method) {
  std::shared_ptr<Graph> graph = module.get_method(method).graph()->copy();
  if (graph->inputs().size() != 2 || !graph->inputs()[0]->uses().empty() || graph->outputs().size() != 1)
    throw ModelError(model.path() + ": its method " + method +
                     " is not frozen, or takes more than a batch; export it with: swsl export");
  graph->eraseInput(0);
  return graph;
}

// A graph made ready to run, any number of runs at a time.
class Program {
 public:
  Program(std::shared_ptr<Graph> graph, const EngineOptions& options, Form form) {
    Converted converted;
    convert_constants(graph->block(), options, form, converted);
    if (form == Form::blocked) torch::jit::ConvertFrozenOpsToMKLDNN(graph);
    torch::jit::runRequiredPasses(graph);
    code_ = torch::jit::Code(graph, "forward");
  }

  torch::jit::Stack operator()(at::Tensor batch) const {
    torch::jit::Stack stack{std::move(batch)};
    torch::jit::InterpreterState(code_).run(stack);
    return stack;
  }

 private:
  torch::jit::Code code_;
};

// While one exists, convolutions on CUDA compute float32 in float32: by default LibTorch rounds their factors
// to TF32, a thousandth of their value. The switch is the process's; whoever comes last turns it back.
class NoTf32 {
 public:
  explicit NoTf32(bool wanted) : wanted_(wanted) {
    if (!wanted_) return;
    const std::lock_guard lock(mutex_);
    if (users_++ > 0) return;
    before_ = at::globalContext().allowTF32CuDNN();
    at::globalContext().setAllowTF32CuDNN(false);
  }
  ~NoTf32() {
    if (!wanted_) return;
    const std::lock_guard lock(mutex_);
    if (--users_ == 0) at::globalContext().setAllowTF32CuDNN(before_);
  }
  NoTf32(const NoTf32&) = delete;

 private:
  static inline std::mutex mutex_;
  static inline int users_ = 0;
  static inline bool before_ = false;
  const bool wanted_;
  const at::NoTF32Guard products_;  // of matrices, in this thread
};

class TorchScriptEngine final : public TensorEngine {
 public:
  TorchScriptEngine(const FrozenModel& model, const EngineOptions& options, const std::string& why_not)
      : options_(options) {
    info_.name = "torchscript";
    info_.classes = static_cast<int>(model.metadata().golden.outputs.logits.size());
    info_.features = static_cast<int>(model.metadata().golden.outputs.features.size());
    info_.device = options.device;
    info_.dtype = dtype_name(*options.dtype);
    if ((options.device == "cpu")) {
      thread_.emplace(options.threads);
      info_.threads = thread_->threads();
    }
    if (options.dtype != ElementType::float32 || !(options.device == "cpu")) {
      prepare(model, Form::channels_last);
      info_.reason = "LibTorch's interpreter on the frozen graph, channels-last";
    } else if (at::globalContext().userEnabledMkldnn() && at::hasMKLDNN()) {
      std::string failure;
      try {
        prepare(model, Form::blocked);
        if (!info_.golden.passed()) failure = "golden check: " + info_.golden.text();
      } catch (const std::exception& error) {
        failure = std::string(error.what()).substr(0, 200);
      }
      info_.reason = "LibTorch's interpreter on the frozen graph, weights packed for oneDNN";
      if (!failure.empty()) {
        prepare(model, Form::plain);
        info_.reason =
            "LibTorch's interpreter on the frozen graph; weights not packed for oneDNN (" + failure + ')';
      }
    } else {
      prepare(model, Form::plain);
      info_.reason = "LibTorch's interpreter on the frozen graph; this torch computes without oneDNN";
    }
    if (!why_not.empty()) info_.reason += "; " + why_not;
    if (!info_.golden.passed())
      throw ModelError(model.path() + ": golden check failed in " + info_.dtype + " on " + info_.device +
                       ": " + info_.golden.text() +
                       (options.dtype == ElementType::float32
                            ? "; export it again, and if that fails too, this torch computes wrongly"
                            : "; use dtype float32"));
  }

  TensorOutputs run_tensor(const at::Tensor& batch, bool logits, bool features) override {
    check_tensor(batch);
    std::vector<TensorOutputs> parts;
    TensorOutputs whole;
    const auto compute_all = [&] {
      const c10::InferenceMode inference;
      const NoTf32 exact(options_.device != "cpu" && options_.dtype == ElementType::float32);
      const std::int64_t count = batch.size(0);
      const auto part = [&](const at::Tensor& images) { return run_part(images, logits, features); };
      // An empty batch still has to know its number of columns.
      if (count == 0) parts.push_back(part(at::zeros({1, 3, batch.size(2), batch.size(3)})));
      const auto compute_part = [&](std::int64_t begin, int size) {
        const auto before = parts.size();
        try {
          for (const std::int64_t end = begin + size; begin < end;) {
            const auto left = static_cast<std::uint64_t>(end - begin);
            const auto images =
                static_cast<std::int64_t>(size == options_.max_batch ? left : std::bit_floor(left));
            parts.push_back(part(batch.narrow(0, begin, images)));
            begin += images;
          }
        } catch (...) {
          parts.resize(before);
          throw;
        }
      };
      in_parts<c10::OutOfMemoryError>(count, most_, compute_part, [] {});
    };
    // Copied outside inference mode: a caller may want gradients of something computed from the result.
    const auto joined = [&](at::Tensor TensorOutputs::* which) {
      std::vector<at::Tensor> rows;
      for (const auto& part : parts) rows.push_back(part.*which);
      return rows.size() == 1 ? rows.front().narrow(0, 0, batch.size(0)).clone() : at::cat(rows);
    };
    const auto work = [&] {
      compute_all();
      if (logits) whole.logits = joined(&TensorOutputs::logits);
      if (features) whole.features = joined(&TensorOutputs::features);
    };
    try {
      on_thread(work);
    } catch (const c10::OutOfMemoryError&) {
      out_of_memory(batch, info_.device);
    }
    return whole;
  }
  const EngineInfo& info() const override { return info_; }

 private:
  void prepare(const FrozenModel& model, Form form) {
    on_thread([&] {
      const c10::InferenceMode inference;
      form_ = form;
      const auto module = libtorch::load_module(model);
      auto forward = graph_of(model, module, "forward"), embed = graph_of(model, module, "embed");
      embed_.reset();
      if (auto* features = find_embedding(*forward, *embed))
        forward->registerOutput(features);  // weights packed twice would cost their size again
      else
        embed_.emplace(embed, options_, form);
      forward_.emplace(forward, options_, form);
      const NoTf32 exact(options_.device != "cpu" && options_.dtype == ElementType::float32);
      const auto run = [&](const at::Tensor& batch) { return run_part(batch, true, true); };
      info_.golden = check_golden(model, run, *options_.dtype);
    });
  }

  // On CUDA the caller's thread has the current stream, which the work belongs on.
  void on_thread(const std::function<void()>& work) {
    if (thread_)
      thread_->run(work);
    else
      work();
  }

  at::Tensor as_input(const at::Tensor& part) const {
    const auto format =
        form_ == Form::channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
    return part.to(at::Device(options_.device), scalar_type(*options_.dtype)).contiguous(format);
  }

  TensorOutputs run_part(const at::Tensor& images, bool logits, bool features) const {
    const auto input = as_input(images);
    const auto rows = [](const c10::IValue& output) { return output.toTensor().to(at::kFloat); };
    TensorOutputs out;
    torch::jit::Stack found;
    if (logits || !embed_) found = (*forward_)(input);
    if (logits) out.logits = rows(found.at(0));
    if (features) out.features = rows(embed_ ? (*embed_)(input).at(0) : found.at(1));
    return out;
  }

  EngineOptions options_;
  std::atomic<int> most_ = options_.max_batch;  // images computed at a time; less after running out of memory
  EngineInfo info_;
  Form form_ = Form::plain;
  std::optional<Program> forward_;  // its outputs: logits, and the embedding unless there is
  std::optional<Program> embed_;
  std::optional<ForwardThread> thread_;  // last, so that it ends before what it uses
};

}  // namespace

std::unique_ptr<Engine> make_torchscript_engine(const FrozenModel& model, const EngineOptions& options,
                                                const std::string& why_not) {
  if (!why_not.empty()) check_torchscript(model, why_not);
  // What a narrow dtype rounds hides what may be wrong with the module: the core has checked its own way of
  // running the file only.
  if (options.dtype != ElementType::float32)
    TorchScriptEngine(model, {.threads = options.threads, .max_batch = 1}, "");
  return std::make_unique<TorchScriptEngine>(model, options, why_not);
}

}  // namespace swsl
