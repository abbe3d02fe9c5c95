// Requests of many threads, computed together: whoever has one image gets a future, and images that come
// within a moment of each other share a forward pass.
//
//   swsl::DynamicBatcher batcher(runner, {.batch_size = 16, .max_wait = std::chrono::milliseconds(2)});
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

#include <future>
#include <memory>

#include <swsl/api.h>
#include <swsl/stream.h>

namespace swsl {

class SWSL_API DynamicBatcher {
 public:
  // Options: a batch goes when it has `batch_size` images, or when none has come for `max_wait`, which must
  // be given; so in a trickle of images the first may wait `batch_size` times as long. It may outlive its
  // runner.
  explicit DynamicBatcher(const Runner& runner, const StreamOptions& options = {});
  ~DynamicBatcher();
  DynamicBatcher(const DynamicBatcher&) = delete;

  // Waits while Stream::capacity() images are under way. Bytes and pixels are not copied: they must stay
  // until the future has its result.
  std::future<Result> submit(ImageSource image);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace swsl
