#include "threads/worker_pool.h"

#include <algorithm>

namespace swsl {

struct WorkerPool::Loop {
  const std::function<void(std::size_t)>* work;
  std::size_t count;
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::condition_variable finished;
  std::size_t done = 0;
  std::exception_ptr error;

  // Takes images until none is left. `work` is only touched for an image that is taken: the caller waits for
  // those.
  void take_part() {
    for (std::size_t i; (i = next.fetch_add(1)) < count;) {
      std::exception_ptr failure;
      try {
        (*work)(i);
      } catch (...) {
        failure = std::current_exception();
      }
      const std::lock_guard lock(mutex);
      if (failure && !error) error = failure;
      if (++done == count) finished.notify_all();
    }
  }
};

WorkerPool::WorkerPool(int threads) {
  for (int i = 1; i < threads; ++i) threads_.emplace_back([this] { serve(); });
}

WorkerPool::~WorkerPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void WorkerPool::serve() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stop_ || !loops_.empty(); });
    if (stop_) return;
    const auto loop = loops_.front();
    lock.unlock();
    loop->take_part();
    lock.lock();
    std::erase(loops_, loop);
  }
}

void WorkerPool::for_each(std::size_t count, const std::function<void(std::size_t)>& work) {
  const auto loop = std::make_shared<Loop>();
  loop->work = &work;
  loop->count = count;
  const bool shared = count > 1 && !threads_.empty();
  if (shared) {
    {
      const std::lock_guard lock(mutex_);
      loops_.push_back(loop);
    }
    changed_.notify_all();
  }
  loop->take_part();
  if (shared) {
    const std::lock_guard lock(mutex_);
    std::erase(loops_, loop);
  }
  std::unique_lock lock(loop->mutex);
  loop->finished.wait(lock, [&] { return loop->done == count; });
  if (loop->error) std::rethrow_exception(loop->error);
}

}  // namespace swsl
