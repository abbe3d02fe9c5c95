// Work on a thread that has just begun.
//
// LibTorch's operators share their work out by OpenMP, whose threads belong to the thread that first used
// them, and do not come along through fork: where the forking thread has used them, its copy in the child
// would wait for them for ever. A thread that begins in the child gets threads of its own. So whatever may
// run such an operator for a caller, whose thread it is and what it has done before being unknown, goes
// through here.
#pragma once

#include <exception>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>

namespace swsl {

// What `work` returns, or throws. The thread inherits nothing of the caller's: no CUDA device, no inference
// mode.
template <typename Work>
std::invoke_result_t<Work> on_fresh_thread(const Work& work) {
  std::optional<std::invoke_result_t<Work>> result;
  std::exception_ptr error;
  std::thread([&] {
    try {
      result.emplace(work());
    } catch (...) {
      error = std::current_exception();
    }
  }).join();
  if (error) std::rethrow_exception(error);
  return *std::move(result);
}

}  // namespace swsl
