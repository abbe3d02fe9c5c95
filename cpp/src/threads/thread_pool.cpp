#include "threads/thread_pool.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace swsl::cpu {
namespace {

void pause() {
#ifdef __x86_64__
  _mm_pause();
#endif
}

// Long enough for the next step of a plan or the next forward of a loop, short enough not to show in a
// profile.
constexpr int spins = 4000;

}  // namespace

ThreadPool::ThreadPool(int threads) {
  for (int index = 1; index < threads; ++index) workers_.emplace_back([this, index] { serve(index); });
}

ThreadPool::~ThreadPool() {
  if (getpid() != process_) {  // the threads did not come along through fork
    for (auto& worker : workers_) worker.detach();
    return;
  }
  stop_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::run(const std::function<void(int)>& work) {
  work_ = &work;
  if (!workers_.empty()) {
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
  }
  work(0);
  barrier();
}

void ThreadPool::barrier() {
  const std::uint32_t phase = phase_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == static_cast<int>(workers_.size())) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.fetch_add(1, std::memory_order_release);
    return;
  }
  for (int spin = 0; phase_.load(std::memory_order_acquire) == phase; ++spin) {
    if (spin < spins)
      pause();
    else
      std::this_thread::yield();
  }
}

void ThreadPool::serve(int index) {
  std::uint32_t seen = 0;
  for (;;) {
    for (int spin = 0; spin < spins && generation_.load(std::memory_order_acquire) == seen; ++spin) pause();
    generation_.wait(seen, std::memory_order_acquire);
    ++seen;
    if (stop_) return;
    (*work_)(index);
    barrier();
  }
}

}  // namespace swsl::cpu
