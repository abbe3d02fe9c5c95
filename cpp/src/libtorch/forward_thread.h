// One thread that computes, for callers on any thread, with a number of OpenMP threads of its own.
//
// OpenMP gives every calling thread a pool of its own, so eight callers of torch would mean eight pools that
// fight over the cores; and torch's number of threads can only be set for the calling thread. Both end where
// one thread does the work.
#pragma once

#include <unistd.h>

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "threads/turns.h"

namespace swsl {

class ForwardThread {
 public:
  // threads: 0 keeps torch's number.
  explicit ForwardThread(int threads);
  ~ForwardThread();
  ForwardThread(const ForwardThread&) = delete;

  // Runs `work` there and waits for it; throws what it throws. Callers take turns.
  void run(const std::function<void()>& work);

  int threads() const { return threads_; }

 private:
  void loop();

  int threads_ = 0;
  const pid_t process_ = getpid();
  Turns turn_;  // held by the caller whose work is under way
  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void()>* work_ = nullptr;
  std::exception_ptr error_;
  bool done_ = false;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace swsl
