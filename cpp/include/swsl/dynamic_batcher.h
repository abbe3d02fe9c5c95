// Requests of many threads, computed together: whoever has one image gets a future, and images that come
// within a moment of each other share a forward pass. Runner::submit has one of these; this is for limits and
// outputs of one's own.
//
//   swsl::DynamicBatcher batcher(runner, {.max_batch = 16, .max_wait = std::chrono::milliseconds(2)});
//   std::future<swsl::Result> answer = batcher.submit("dog.jpg");   // from any thread
//   for (const auto& p : answer.get().predictions) std::cout << p.label << '\n';
//
// An image that cannot be used is a result with an error. Cores are shared as a stream shares them.
//
// Errors: std::invalid_argument for a faulty option. If the engine fails, its error comes out of the futures
// of all images under way, and of `submit` from then on.
//
// Thread safety: any number of threads may submit. Destroying it computes what was submitted, then stops; no
// call may be under way then. A process forked off meanwhile must make its own; `submit` is
// std::runtime_error there.
#pragma once

#include <chrono>
#include <cstddef>
#include <future>
#include <memory>
#include <vector>

#include <swsl/api.h>
#include <swsl/runner.h>

namespace swsl {

// The defaults are those of Python's DynamicBatcher.
struct DynamicBatcherOptions {
  int max_batch = 0;  // images in one forward pass; 0: the runner's batch size
  int workers = 0;    // these three as StreamOptions
  int top_k = 5;
  std::vector<Output> outputs = {Output::predictions};
  // After so long without a new image, those that are there are computed; so in a trickle of images the first
  // may wait `max_batch` times as long.
  std::chrono::microseconds max_wait = std::chrono::milliseconds(2);
  int max_queue = 256;  // images that wait for their turn at most, beside those under way
};

class SWSL_API DynamicBatcher {
 public:
  // It may outlive its runner.
  explicit DynamicBatcher(const Runner& runner, const DynamicBatcherOptions& options = {});
  ~DynamicBatcher();
  DynamicBatcher(const DynamicBatcher&) = delete;

  // Waits while `max_queue` images wait for their turn. Bytes and pixels are not copied: they must stay until
  // the future has its result.
  std::future<Result> submit(ImageSource image);

  // Whether the engine's error has ended it.
  bool failed() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace swsl
