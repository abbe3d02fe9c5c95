// Any number of images, through a runner, at the speed of the machine and in bounded memory: while one batch
// is in the forward pass, the next ones are read, decoded and preprocessed.
//
//   swsl::Stream stream(runner, {.top_k = 5});
//   const auto show = [](const swsl::Result& result) { … };
//   for (std::string path; std::getline(std::cin, path);) {
//     if (stream.under_way() == stream.capacity()) show(*stream.pop());
//     stream.push(path);
//   }
//   stream.finish();
//   while (const auto result = stream.pop()) show(*result);
//
// Results come in the order of the images. An image that cannot be used is a result with an error.
//
// Live sources, whose next image may be long in coming: while the thread above waits for its next path it
// shows nothing. Let one thread push and another pop, or ask `wait_for` while there is nothing to push. A
// batch that is not full is computed once nothing has been pushed for `max_wait`; then how images are put
// together, and with it the last digits of a result, is up to their timing.
//
// Cores: an image that is decoded and preprocessed takes one of the cores that the process may use, a forward
// pass on the CPU as many as it has threads and one on a GPU none; both wait for free ones, so the streams of
// one runner never keep more threads busy than there are cores. Reading files takes none: with slow storage,
// more workers read ahead.
//
// Errors: std::invalid_argument for a faulty option and for push after finish. If the engine fails, pop
// throws its error once the results before it are taken, and so does a push that waits.
//
// Thread safety: one thread may push while another pops; two may not push, nor pop, at the same time. A
// stream may be destroyed at any moment when no call is under way: it waits for the images in the decoders
// and the batch in the forward pass, and drops the rest. It may outlive its runner. A process forked off
// meanwhile can only destroy it; anything else is std::runtime_error there.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <unistd.h>

#include <swsl/api.h>
#include <swsl/runner.h>

namespace swsl {

class Pipeline;

struct StreamOptions {
  int batch_size = 0;  // images in one forward pass; 0: the runner's
  int workers = 0;     // threads that read, decode and preprocess; 0: as many as the runner has cores
  int top_k = 5;       // predictions of an image; a model with fewer classes gives all of them
  std::vector<Output> outputs = {Output::predictions};  // one or more, of one forward pass

  // After so long without a push, the images that are there are computed without waiting for a full batch;
  // nullopt: only full batches before `finish`, so that results do not depend on timing.
  std::optional<std::chrono::microseconds> max_wait = std::chrono::milliseconds(10);
};

class SWSL_API Stream {
 public:
  explicit Stream(const Runner& runner, const StreamOptions& options = {});
  ~Stream();
  Stream(const Stream&) = delete;

  // Images that have been pushed and not yet popped, and how many these can be.
  std::size_t under_way() const;
  std::size_t capacity() const;

  // Waits while `capacity()` images are under way. Bytes and pixels are not copied: they must stay until
  // their result is popped or the stream is destroyed.
  void push(ImageSource image);

  // No more images: the last batch is computed at once, full or not.
  void finish();

  // Waits for the next result; nothing after the last one. `spent`, if not null, gets what it has taken.
  std::optional<Result> pop(Spent* spent = nullptr);

  // Whether `pop` would return, or throw, at once: waits at most so long for that.
  bool wait_for(std::chrono::milliseconds time) const;

 private:
  Pipeline& pipeline() const;

  const StreamOptions options_;
  const std::shared_ptr<Runner::State> runner_;
  const pid_t process_ = getpid();
  std::unique_ptr<Pipeline> pipeline_;
};

}  // namespace swsl
