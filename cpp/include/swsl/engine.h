// What runs the forward pass. Everything around it (files, pixels, labels) is the runner's business.
//
//   auto model = swsl::FrozenModel::load("model.pt");
//   auto engine = swsl::make_engine(model, {.threads = 2});
//   std::vector<float> logits(2 * engine->info().classes);
//   engine->forward(swsl::Batch::contiguous(pixels.data(), {2, 3, 224, 224}), logits.data());
//   std::cout << engine->info().name << ": " << engine->info().reason << '\n';
//
// The core has an engine for float32 and bfloat16 on every CPU. Linking swsl::libtorch adds TorchScript's,
// for float16 and for networks whose operators have no kernels here, and those for CUDA devices
// (swsl/libtorch/tensors.h).
//
// Errors: std::invalid_argument for a batch of another shape or type, or options that cannot be had;
// NeedsLibTorch for those that swsl::libtorch would have; ModelError from make_engine for a module that does
// not pass its own golden check.
//
// On CUDA, batches are padded to one of a few sizes, each of which is measured and captured as a CUDA graph,
// in a second or more: the largest and single images when the engine is made, others when they come for the
// second time. Two forward passes can be under way, each with memory of its own for activations, so that one
// computes while the other's batch comes and its results go.
//
// Thread safety: run, forward and embed may be called from any number of threads. A process that was forked
// off after the engine was made has none of its threads and must make its own: calls there are refused.
#pragma once

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <swsl/api.h>
#include <swsl/batch.h>
#include <swsl/frozen_model.h>
#include <swsl/layer_time.h>

namespace swsl {

// The core alone cannot do this, and swsl::libtorch is not linked. The message says what asks for it.
class SWSL_API NeedsLibTorch : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

struct EngineOptions {
  std::string device = "cpu";  // or as parse_device returns it
  // Of weights and activations. Nothing: the faster of float32 and bfloat16, the latter only if its logits
  // are within the tolerance.
  std::optional<ElementType> dtype = ElementType::float32;
  bool tf32 = false;  // with float32 on CUDA: products of numbers rounded to TF32, in float16's tolerance
  int threads = 0;    // of the forward pass on a CPU; 0: as many as there are cores that this process may use
  int max_batch = 16;  // larger batches are computed in parts of at most this many images
};

struct EngineInfo {
  std::string name;    // "planned", "torchscript", "cuda"
  std::string device;  // "cpu", "cuda:0", …
  std::string dtype;   // "float32", "bfloat16", "float16", "tf32"
  int threads = 0;     // of the forward pass; 0 where the CPU does not compute it
  int at_once = 1;     // forward passes that can be under way at a time; further callers wait
  std::string reason;  // why this engine and this form of it
  GoldenResult golden;
  int classes = 0;   // numbers in a row of logits
  int features = 0;  // and in one of features
};

class SWSL_API Engine {
 public:
  virtual ~Engine() = default;

  // Of a batch N×3×H×W in the CPU's memory or the engine's device's, to float32 rows in the CPU's memory: N ×
  // info().classes, and N × info().features. One of the two may be null: it is not wanted. Both are of one
  // pass; only TorchScript's engine makes two where a module's `embed` is no part of its `forward`.
  virtual void run(const Batch& batch, float* logits, float* features) = 0;

  void forward(const Batch& batch, float* logits) { run(batch, logits, nullptr); }
  void embed(const Batch& batch, float* features) { run(batch, nullptr, features); }

  virtual const EngineInfo& info() const = 0;

  // Times one forward pass of at most max_batch images, layer by layer; empty where the engine has no plan of
  // its own.
  virtual std::vector<LayerTime> profile(const Batch& batch);
};

// Floating-point operations a second that this processor reaches on `threads` threads with multiply-adds in
// registers alone, measured now; 0 where the planned engine has no kernels for the dtype.
SWSL_API double peak_flops(ElementType dtype, int threads);

// The best engine for this model and machine, warm: its golden check has been run. It keeps no reference to
// `model`, whose memory can be given back.
SWSL_API std::unique_ptr<Engine> make_engine(const FrozenModel& model, const EngineOptions& options = {});

SWSL_API std::optional<ElementType> parse_dtype(
    const std::string& name);  // "float32", "bfloat16", "float16", "auto" (nothing)

// "cpu", "cuda", "cuda:1" or "auto" (the first CUDA device if there is one) as "cpu" or "cuda:N"; refuses
// what this machine or torch lacks.
SWSL_API std::string parse_device(const std::string& name);

}  // namespace swsl
