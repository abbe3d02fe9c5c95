// See ../../engine.h: workspaces that nobody has.
#pragma once

#include <map>
#include <shared_mutex>
#include <tuple>

namespace at::cuda {

struct Workspaces {
  std::shared_mutex mutex;
  std::map<std::tuple<void*, void*>, int> map;
};

inline Workspaces& cublas_handle_stream_to_workspace() {
  static Workspaces none;
  return none;
}
inline Workspaces& cublaslt_handle_stream_to_workspace() { return cublas_handle_stream_to_workspace(); }

}  // namespace at::cuda
