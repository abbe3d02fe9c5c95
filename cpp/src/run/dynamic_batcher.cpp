#include <swsl/dynamic_batcher.h>

#include <deque>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>

namespace swsl {

struct DynamicBatcher::State {
  State(const Runner& runner, const StreamOptions& options) : stream(runner, options) {}

  // The results come in the order of the images.
  void answer() {
    try {
      while (auto result = stream.pop()) take().set_value(std::move(*result));
    } catch (...) {
      const auto error = std::current_exception();
      const std::lock_guard lock(promises_lock);
      failed = error;
      for (auto& promise : promises) promise.set_exception(error);
      promises.clear();
    }
  }

  std::promise<Result> take() {
    const std::lock_guard lock(promises_lock);
    auto promise = std::move(promises.front());
    promises.pop_front();
    return promise;
  }

  Stream stream;
  std::mutex submitting;  // one thread at a time may push
  std::mutex promises_lock;
  std::deque<std::promise<Result>> promises;
  std::exception_ptr failed;
  std::thread answering;
  const pid_t process = getpid();
};

DynamicBatcher::DynamicBatcher(const Runner& runner, const StreamOptions& options)
    : state_(std::make_unique<State>(runner, options)) {
  if (!options.max_wait)
    throw std::invalid_argument("max_wait: expected a time, for the last images would wait for ever");
  state_->answering = std::thread([&state = *state_] { state.answer(); });
}

DynamicBatcher::~DynamicBatcher() {
  if (getpid() != state_->process) {
    (void)state_.release();  // its thread did not come along through fork, and nothing can join it
    return;
  }
  state_->stream.finish();
  state_->answering.join();
}

std::future<Result> DynamicBatcher::submit(ImageSource image) {
  (void)state_->stream.under_way();  // throws in a forked process, whose locks may be held for ever
  const std::lock_guard turn(state_->submitting);
  std::future<Result> future;
  {
    const std::lock_guard lock(state_->promises_lock);
    if (state_->failed) std::rethrow_exception(state_->failed);
    future = state_->promises.emplace_back().get_future();
  }
  state_->stream.push(std::move(image));
  return future;
}

}  // namespace swsl
