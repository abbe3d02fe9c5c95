// A frozen module stands alone: nothing of swsl is linked here.
#include <torch/script.h>

#include <iostream>

int main(int, char** argv) {
  auto module = torch::jit::load(argv[1]);
  const c10::InferenceMode inference;
  const auto batch = torch::zeros({2, 3, 64, 64});
  const auto logits = module.forward({batch}).toTensor();
  const auto features = module.get_method("embed")({batch}).toTensor();
  std::cout << logits.sizes() << ' ' << features.sizes() << '\n';
  return !(logits.size(1) == 10 && features.size(1) == 2048 && logits.isfinite().all().item<bool>());
}
