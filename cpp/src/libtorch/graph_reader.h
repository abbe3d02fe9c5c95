// From a frozen TorchScript graph to the list of operations that the CPU engine plans.
#pragma once

#include <swsl/frozen_model.h>

#include "engine/plan/network.h"

namespace swsl::cpu {

// Throws UnsupportedNetwork, naming the operator, when the model's `forward` holds one that the engine does
// not know or its `embed` does not return what feeds the last layer of `forward`. The weights stay the
// module's memory.
FusedNetwork read_model(const FrozenModel& model);

}  // namespace swsl::cpu
