// swsl._libtorch: loading it registers LibTorch's engines with the core. swsl/deploy/native.py loads it when
// they are needed.

#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <swsl/libtorch/tensors.h>

namespace py = pybind11;

namespace {

// runner: the capsule of a swsl._C.Runner. A floating-point batch N×3×H×W on any device → float32 logits
// N×classes on the runner's.
at::Tensor forward(const py::capsule& runner, const at::Tensor& batch) {
  auto& engine = runner.get_pointer<swsl::Runner>()->engine();
  const py::gil_scoped_release no_gil;
  return swsl::libtorch::forward(engine, batch);
}

}  // namespace

PYBIND11_MODULE(_libtorch, m) { m.def("forward", &forward, py::arg("runner"), py::arg("batch")); }
