// A loop over images shared by a few threads, the caller's among them; any number of callers at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace swsl {

class WorkerPool {
 public:
  // `threads`, at least 1, counts the caller.
  explicit WorkerPool(int threads);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;

  // work(i) for every i < count, in no order; then throws the first exception that came out of one.
  void for_each(std::size_t count, const std::function<void(std::size_t)>& work);

 private:
  struct Loop;
  void serve();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Loop>> loops_;  // that still have an image to hand out
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace swsl
