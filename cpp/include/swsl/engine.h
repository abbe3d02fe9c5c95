// What runs the forward pass. Everything around it (files, pixels, labels) is the runner's business.
//
//   auto model = swsl::FrozenModel::load("model.pt");
//   auto engine = swsl::make_engine(model, {.device = at::kCPU, .dtype = at::kFloat, .threads = 2});
//   at::Tensor logits = engine->forward(batch);   // N×3×H×W → N×classes
//   std::cout << engine->info().name << ": " << engine->info().reason << '\n';
//
// Errors: std::invalid_argument for a batch of another shape or dtype, or options that cannot be had;
// ModelError from make_engine for a module that does not pass its own golden check.
//
// On CUDA, batches are padded to one of a few sizes, each of which is measured and captured as a CUDA graph,
// in a second or more: the largest and single images when the engine is made, others when they come for the
// second time. Two forward passes can be under way, each with memory of its own for activations, so that one
// computes while the other's batch comes and its results go.
//
// Thread safety: forward and embed may be called from any number of threads. A process that was forked off
// after the engine was made has none of its threads and must make its own: calls there are refused.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <swsl/api.h>
#include <swsl/frozen_model.h>
#include <swsl/layer_time.h>

namespace swsl {

struct EngineOptions {
  at::Device device = at::kCPU;
  at::ScalarType dtype =
      at::kFloat;      // of weights and activations: kFloat, kBFloat16, kHalf; Undefined: the
                       // faster of the first two, bfloat16 only if its logits are within the tolerance
  bool tf32 = false;   // with kFloat on CUDA: products of numbers rounded to TF32, in float16's tolerance
  int threads = 0;     // of the forward pass on a CPU; 0: as many as torch uses (at::get_num_threads)
  int max_batch = 16;  // larger batches are computed in parts of at most this many images
};

struct EngineInfo {
  std::string name;    // "torchscript", …
  std::string device;  // "cpu", "cuda:0", …
  std::string dtype;   // "float32", "bfloat16", "float16", "tf32"
  int threads = 0;     // of the forward pass; 0 where the CPU does not compute it
  int at_once = 1;     // forward passes that can be under way at a time; further callers wait
  std::string reason;  // why this engine and this form of it
  GoldenResult golden;
};

class SWSL_API Engine {
 public:
  virtual ~Engine() = default;

  // batch: N×3×H×W, any floating dtype, any device, N ≥ 0. Returns float32 on the engine's device, N×classes
  // and N×features.
  virtual at::Tensor forward(const at::Tensor& batch) = 0;
  virtual at::Tensor embed(const at::Tensor& batch) = 0;

  virtual const EngineInfo& info() const = 0;

  // Times one forward pass of at most max_batch images, layer by layer; empty where the engine has no plan of
  // its own.
  virtual std::vector<LayerTime> profile(const at::Tensor& batch);
};

// Floating-point operations a second that this processor reaches on `threads` threads with multiply-adds in
// registers alone, measured now; 0 where the planned engine has no kernels for the dtype.
SWSL_API double peak_flops(at::ScalarType dtype, int threads);

// The best engine for this model and machine, warm: its golden check has been run. It keeps no reference to
// `model`, whose memory can be given back.
SWSL_API std::unique_ptr<Engine> make_engine(const FrozenModel& model, const EngineOptions& options = {});

SWSL_API at::ScalarType parse_dtype(
    const std::string& name);  // "float32", "bfloat16", "float16", "auto" (Undefined)
SWSL_API std::string dtype_name(at::ScalarType dtype);

// "cpu", "cuda", "cuda:1" or "auto" (the first CUDA device if there is one); refuses what this machine or
// torch lacks.
SWSL_API at::Device parse_device(const std::string& name);

}  // namespace swsl
