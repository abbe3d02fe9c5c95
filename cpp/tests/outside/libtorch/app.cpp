#include <torch/script.h>

#include <swsl/libtorch/tensors.h>

#include <iostream>

// Tensors in and out, by the core's engine and by LibTorch's, which are to agree.
int main(int, char** argv) {
  const swsl::Runner core(argv[1]), half(argv[1], {.dtype = "float16"});
  const std::vector<swsl::ImageSource> images = {argv[2]};
  const at::Tensor batch = swsl::libtorch::rows(core.preprocess(images));
  const at::Tensor logits = swsl::libtorch::forward(core.engine(), batch);
  const at::Tensor expected =
      swsl::libtorch::load_module(swsl::FrozenModel::load(argv[1])).forward({batch}).toTensor();
  for (const auto& p : core.classify_file(argv[2])) std::cout << p.label << ' ' << p.probability << '\n';
  const bool same = at::allclose(logits, expected, 1e-4, 1e-4) &&
                    at::allclose(swsl::libtorch::forward(half.engine(), batch), expected, 1e-1, 1e-1);
  if (!same) std::cerr << "expected\n" << expected << "\nfound\n" << logits << '\n';
  return same && half.info().name == "torchscript" ? 0 : 1;
}
