// A mutex that is a queue: whoever came first goes first. std::mutex lets a thread that has just unlocked
// lock again before those that wait have woken up, so that of equal callers some wait many times as long as
// others.
//
//   Turns turns;
//   const std::lock_guard turn(turns);
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <utility>

namespace swsl {

class Turns {
 public:
  Turns() = default;
  Turns(const Turns&) = delete;

  void lock() {
    std::unique_lock lock(mutex_);
    if (!std::exchange(taken_, true)) return;
    Waiter me;
    waiting_.push_back(&me);
    me.called.wait(lock, [&] { return me.turn; });
  }

  // The turn goes from hand to hand: between two there is no moment at which somebody else could take it.
  void unlock() {
    const std::lock_guard lock(mutex_);
    if (waiting_.empty()) {
      taken_ = false;
      return;
    }
    Waiter& next = *waiting_.front();
    waiting_.pop_front();
    next.turn = true;
    next.called.notify_one();  // with the mutex held: once it is free, `next` may be gone
  }

  std::size_t waiting() const {
    const std::lock_guard lock(mutex_);
    return waiting_.size();
  }

 private:
  struct Waiter {
    std::condition_variable called;
    bool turn = false;
  };

  mutable std::mutex mutex_;
  bool taken_ = false;
  std::deque<Waiter*> waiting_;
};

}  // namespace swsl
