// Where the time of a forward pass goes.
//
//   for (const auto& layer : runner.profile(batch))
//     std::cout << layer.shape << ' ' << layer.seconds * 1e3 << " ms\n";
//
// A plain struct; nothing here throws.
#pragma once

#include <string>
#include <vector>

#include <swsl/api.h>

namespace swsl {

// A way to compute a layer that an engine tried before it chose one.
struct LayerWay {
  std::string kernel;
  double seconds = 0;   // 0 where it was not timed:
  std::string trouble;  // why, else empty
};

// One fused layer: a convolution with its bias, residual addition and ReLU, or a pool.
struct LayerTime {
  std::string kernel;        // "1×1 tiles", "max pool", …
  std::string shape;         // "64×56×56 → 128×56×56", of one image
  double multiply_adds = 0;  // of the whole batch
  double seconds = 0;
  std::vector<LayerWay> ways;  // all that were tried for this batch size, the chosen one among them; empty
                               // where nothing was to be chosen
};

}  // namespace swsl
