// The fused network on a GPU: its weights there, and for each layer and batch size the fastest of the ways to
// compute it.
#pragma once

#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <swsl/frozen_model.h>
#include <swsl/layer_time.h>

#include "engine/plan/fuse.h"
#include "libtorch/tensor_engine.h"

namespace swsl::cuda {

// Ways to compute a convolution with its epilogue.
enum class Method {
  plain,          // cuDNN's convolution, then our epilogue kernel
  fused,          // cuDNN's convolution with bias, addition and ReLU
  matrix,         // 1×1: cuBLAS, bias and ReLU in its epilogue where nothing is added
  grouped_small,  // our tensor-core kernel for narrow groups, with little shared memory and many blocks at a
                  // time
  grouped_large,
};
const char* name(Method method);

// What was chosen for a layer, and from what.
struct Choice {
  Method method = Method::plain;
  std::vector<LayerWay> ways;
};

// One for each layer; of layers that are no convolutions without meaning.
using Methods = std::vector<Choice>;

// Const functions may be called from several threads at once, but what `choose` measures is then not worth
// much. Everything is enqueued on the current stream, of the current device.
class DeviceNetwork {
 public:
  // dtype: kFloat, kHalf or kBFloat16. `tf32`: products of float32 numbers rounded to TF32; never without it.
  DeviceNetwork(cpu::FusedNetwork network, at::Device device, at::ScalarType dtype, bool tf32);

  // input: in this dtype, channels-last. `times`, if not null, gets what each layer took.
  TensorOutputs run(const at::Tensor& input, const Methods& methods,
                    std::vector<LayerTime>* times = nullptr) const;

  // Of `methods`, those of convolutions.
  std::vector<Method> convolutions(const Methods& methods) const;

  // Times every method of every kind of layer on this input; results that disagree with `plain` are out, and
  // `notes` says so.
  Methods choose(const at::Tensor& input, std::string& notes) const;

 private:
  struct Step {
    cpu::Layer layer;
    at::Tensor weight;   // channels-last
    at::Tensor bias;     // in the dtype
    at::Tensor bias32;   // float32, for our kernels
    at::Tensor grouped;  // packed for our kernel, undefined where it does not apply
  };

  template <typename Convolve>
  TensorOutputs walk(const at::Tensor& input, const Convolve& convolve) const;
  std::vector<Method> candidates(const Step& step) const;
  at::Tensor convolve(const Step& step, Method method, const at::Tensor& input,
                      const at::Tensor& residual) const;
  void add_epilogue(const Step& step, at::Tensor& output, const at::Tensor& residual) const;

  std::vector<Step> steps_;
  std::vector<std::size_t> last_use_;  // of every value, a step's index
  int input_ = 0, output_ = 0, features_ = 0;
  at::ScalarType dtype_;
  bool tf32_;
};

}  // namespace swsl::cuda
