#include "libtorch/forward_thread.h"

#include <new>
#include <stdexcept>

#include <ATen/Parallel.h>

#include "engine/batch_check.h"

namespace swsl {

ForwardThread::ForwardThread(int threads) {
  const int of_caller = at::get_num_threads();
  threads_ = threads > 0 ? threads : of_caller;
  thread_ = std::thread([this] { loop(); });
  if (threads_ == of_caller) return;  // what a new thread of torch starts with
  run([this] { at::set_num_threads(threads_); });
  // torch also remembers the number last set, for threads that have not asked yet: those are not ours to
  // change.
  at::set_num_threads(of_caller);
}

ForwardThread::~ForwardThread() {
  if (getpid() != process_) {  // the thread did not come along through fork
    thread_.detach();
    new (&changed_) std::condition_variable;  // the old one's end would wait for the threads that wait for it
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void ForwardThread::run(const std::function<void()>& work) {
  check_process(process_, "its threads stayed behind");
  const std::lock_guard turn(turn_);
  std::unique_lock lock(mutex_);
  work_ = &work;
  done_ = false;
  error_ = nullptr;
  changed_.notify_all();
  changed_.wait(lock, [this] { return done_; });
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ForwardThread::loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stop_ || work_; });
    if (stop_) return;
    const auto* work = std::exchange(work_, nullptr);
    lock.unlock();
    std::exception_ptr error;
    try {
      (*work)();
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    error_ = error;
    done_ = true;
    changed_.notify_all();
  }
}

}  // namespace swsl
