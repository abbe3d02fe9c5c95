// Memory that host and GPU both see, for tests of kernels.
#pragma once

#include <cstddef>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>

#include "check.h"

namespace fixtures {

inline void need_gpu() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) throw check::Skipped("no GPU");
}

template <typename T>
class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t count) : count_(count) {
    void* memory = nullptr;
    if (cudaMallocManaged(&memory, count * sizeof(T)) != cudaSuccess) throw std::bad_alloc();
    data_ = static_cast<T*>(memory);
    std::memset(memory, 0xff, count * sizeof(T));  // NaN
  }
  explicit DeviceMemory(const std::vector<T>& values) : DeviceMemory(values.size()) {
    std::memcpy(static_cast<void*>(data_), values.data(), values.size() * sizeof(T));
  }
  DeviceMemory(DeviceMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(other.count_) {}
  ~DeviceMemory() { cudaFree(data_); }

  T* data() { return data_; }

  // Once the kernels are done.
  std::vector<T> values() {
    if (const auto error = cudaDeviceSynchronize(); error != cudaSuccess)
      check::fail(__FILE__, __LINE__, cudaGetErrorString(error));
    return {data_, data_ + count_};
  }

 private:
  T* data_;
  std::size_t count_;
};

}  // namespace fixtures
