#include <swsl/dynamic_batcher.h>

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include <swsl/stream.h>

namespace swsl {
namespace {

StreamOptions stream_options(const DynamicBatcherOptions& options) {
  const auto refuse = [](const char* name, int least, int value) {
    throw std::invalid_argument(std::string(name) + ": expected " + std::to_string(least) + " or more, got " +
                                std::to_string(value));
  };
  if (options.max_batch < 0) refuse("max_batch", 0, options.max_batch);
  if (options.max_queue < 1) refuse("max_queue", 1, options.max_queue);
  return {options.max_batch, options.workers, options.top_k, options.outputs, options.max_wait};
}

}  // namespace

struct DynamicBatcher::State {
  State(const Runner& runner, const DynamicBatcherOptions& options)
      : stream(runner, stream_options(options)), max_queue(static_cast<std::size_t>(options.max_queue)) {}

  // The results come in the order of the images.
  void answer() {
    try {
      while (auto result = stream.pop()) take().set_value(std::move(*result));
    } catch (...) {
      const std::lock_guard lock(mutex);
      failed = std::current_exception();
      for (auto& promise : promises) promise.set_exception(failed);
      promises.clear();
      waiting.clear();
      room.notify_all();
    }
  }

  std::promise<Result> take() {
    const std::lock_guard lock(mutex);
    auto promise = std::move(promises.front());
    promises.pop_front();
    feed();
    return promise;
  }

  // With the lock, so that one thread at a time pushes, and none waits in there.
  void feed() {
    for (; !waiting.empty() && stream.under_way() < stream.capacity(); waiting.pop_front()) {
      stream.push(std::move(waiting.front()));
      room.notify_one();
    }
    if (closing && waiting.empty()) stream.finish();
  }

  Stream stream;
  const std::size_t max_queue;
  std::mutex mutex;
  std::condition_variable room;
  std::deque<ImageSource> waiting;            // for a place in the stream
  std::deque<std::promise<Result>> promises;  // of those in the stream, and then of those
  bool closing = false;
  std::exception_ptr failed;
  std::thread answering;
  const pid_t process = getpid();
};

DynamicBatcher::DynamicBatcher(const Runner& runner, const DynamicBatcherOptions& options)
    : state_(std::make_unique<State>(runner, options)) {
  state_->answering = std::thread([&state = *state_] { state.answer(); });
}

DynamicBatcher::~DynamicBatcher() {
  if (getpid() != state_->process) {
    (void)state_.release();  // its thread did not come along through fork, and nothing can join it
    return;
  }
  {
    const std::lock_guard lock(state_->mutex);
    state_->closing = true;
    state_->feed();
  }
  state_->answering.join();
}

std::future<Result> DynamicBatcher::submit(ImageSource image) {
  auto& state = *state_;
  (void)state.stream.under_way();  // throws in a forked process, whose locks may be held for ever
  std::unique_lock lock(state.mutex);
  state.room.wait(lock, [&] { return state.failed || state.waiting.size() < state.max_queue; });
  if (state.failed) std::rethrow_exception(state.failed);
  auto future = state.promises.emplace_back().get_future();
  state.waiting.push_back(std::move(image));
  state.feed();
  return future;
}

bool DynamicBatcher::failed() const {
  (void)state_->stream.under_way();
  const std::lock_guard lock(state_->mutex);
  return state_->failed != nullptr;
}

}  // namespace swsl
