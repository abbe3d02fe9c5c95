// As much of CUDA, cuDNN and LibTorch's part for them as the CUDA engine uses, on the CPU: with this folder
// before LibTorch's headers, its sources compile and run with tensors of the CPU. A stream's work is done at
// once. A graph is a list of the operators and kernels that ran while it was captured, and its launch runs
// them again into the same memory. What a card would do wrong in time (races of streams, memory given away
// too early) does not show here; what the engine itself does wrong does.
#pragma once

#include <atomic>
#include <cstdint>

#include "cuda_runtime_api.h"

namespace cuda_on_cpu {

struct State {
  std::atomic<std::int64_t> most_values{INT64_MAX};  // of an output of cuDNN: more of them do not fit
  std::atomic<bool> can_capture = true, fused_is_wrong = false, has_fused = true;
  std::atomic<int> times_full = 0, captures = 0, replays = 0;
  std::atomic<int> pools = 0;  // in use
};
State& state();

void expect(bool condition, const char* message);  // throws std::logic_error

cudaStream_t current();

// Whether this thread captures; then it is recorded, for the graph's launches.
bool capturing();
void record(const std::function<void()>& work);

}  // namespace cuda_on_cpu
