// A few threads that wait close by: the steps of a plan take tens of microseconds, so handing one over must
// cost about one.
//
//   ThreadPool threads(2);
//   threads.run([&](int index) { … threads.barrier(); … });   // index 0 is the calling thread
//
// One run at a time per pool; pools do not know of each other. A waiting thread spins briefly, then gives its
// core away, so that more threads than cores (or another pool at work) cost time, not progress.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include <unistd.h>

namespace swsl::cpu {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }
  // `work` must not throw.
  void run(const std::function<void(int)>& work);
  // Returns when every thread of the running `work` has come here.
  void barrier();

 private:
  void serve(int index);

  const pid_t process_ = getpid();
  std::vector<std::thread> workers_;
  const std::function<void(int)>* work_ = nullptr;
  bool stop_ = false;
  alignas(64) std::atomic<std::uint32_t> generation_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> phase_{0};
};

}  // namespace swsl::cpu
