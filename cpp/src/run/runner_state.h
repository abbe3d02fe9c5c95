// What a runner holds, and what it does to images, for runner.cpp and stream.cpp.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include <unistd.h>

#include <swsl/preprocessor.h>
#include <swsl/runner.h>

#include "run/batch_buffer.h"
#include "threads/cores.h"
#include "threads/worker_pool.h"

namespace swsl {

// Decoders keep their buffers, so they are handed from image to image.
class Decoders {
 public:
  // Makes the first one, which judges the options.
  explicit Decoders(const DecodeOptions& options) : options_(options) {
    idle_.push_back(std::make_unique<ImageDecoder>(options));
  }

  template <typename Use>
  void with(const Use& use) {
    auto decoder = take();
    use(*decoder);  // a decoder that has thrown is dropped with its buffers
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(decoder));
  }

 private:
  std::unique_ptr<ImageDecoder> take() {
    const std::lock_guard lock(mutex_);
    if (idle_.empty()) return std::make_unique<ImageDecoder>(options_);
    auto decoder = std::move(idle_.back());
    idle_.pop_back();
    return decoder;
  }

  DecodeOptions options_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<ImageDecoder>> idle_;
};

// What errors call an image.
std::string name_of(const ImageSource& source);

// What is to be answered about each image. Throws std::invalid_argument.
struct Wanted {
  Wanted(std::span<const Output> outputs, int top_k);

  bool of_logits() const { return predictions || logits; }

  bool predictions = false, embedding = false, logits = false;
  int top_k;
};

struct Runner::State {
  // In a process forked off since, it is never taken apart: its threads are not there to be joined, and a
  // condition variable for which they waited would wait for them.
  static std::shared_ptr<State> make(const FrozenModel& model, const RunnerOptions& options);

  // Decodes the image and calls `use` with its pixels. Returns what is wrong with it, "" if nothing is.
  // `when_read` is called once the image's file has been read and before anything is computed. `use_jpeg`, if
  // there is one, gets JPEGs that a GPU may decode (plain_jpeg.h) with their sides, and may return false to
  // get their pixels as well.
  std::string with_pixels(
      const ImageSource& source, const std::function<void()>& when_read,
      const std::function<void(const ImageView&)>& use,
      const std::function<bool(const EncodedImage& jpeg, int height, int width)>& use_jpeg = {});

  std::string preprocess(const ImageSource& source, float* output,
                         const std::function<void()>& when_read = {});

  // As BatchBuffer::prepare, on one of the cores; and Engine::run, on as many as it has threads.
  // Either tells its seconds on them.
  Prepared prepare(BatchBuffer& buffer, const ImageSource& image, std::size_t place);
  double compute(const Batch& batch, float* logits, float* features);

  // Likewise what an answer is made of: for each image one row, of logits, of features or of both in this
  // order. And the answer made of it.
  int columns(const Wanted& wanted) const;
  double compute(const Batch& batch, const Wanted& wanted, float* rows);
  Result result(const ImageSource& image, std::string error, std::span<const float> row,
                const Wanted& wanted) const;

  // For batches on their way to the engine: made by the GPU where it computes them and this build has the
  // kernels.
  std::unique_ptr<BatchBuffer> make_buffer(int size);

  // Rows of images that cannot be used are NaN.
  BatchResult preprocess(std::span<const ImageSource> images);

  // `compute`: a batch to one row of `columns` for each of its images.
  using Compute = std::function<void(const Batch& batch, float* rows)>;
  BatchResult run(std::span<const ImageSource> images, int columns, const Compute& compute);

  // Throws in a process that was forked off after the runner was made.
  void check_own_process() const;

  std::vector<Prediction> predictions(std::span<const float> logits, int top_k) const;

  const Metadata metadata;
  const int batch_size;
  const Preprocessor preprocessor;
  const std::pair<std::shared_ptr<const Nvjpeg>, std::string> nvjpeg;  // null unless the options ask for it
  const std::unique_ptr<Engine> engine;
  const EngineInfo info;  // the engine's, with what the runner has to add
  CoreBudget cores;       // shared by all calls and streams of this runner
  Decoders decoders;
  const std::function<Image(const ImageSource&)> decode_other;
  WorkerPool workers;

 private:
  void decode(const ImageSource& source, const std::function<void()>& when_read,
              const std::function<void(const ImageView&)>& use,
              const std::function<bool(const EncodedImage&, int, int)>& use_jpeg);
  std::unique_ptr<BatchBuffer> make_buffer(int size, ElementType dtype, Layout layout);
  BatchResult run(std::span<const ImageSource> images, std::vector<std::int64_t> row_shape,
                  BatchBuffer& buffer, const Compute& compute);
  std::unique_ptr<BatchBuffer> take_buffer();

  State(const FrozenModel& model, const RunnerOptions& options);
  const pid_t process_ = getpid();
  std::mutex mutex_;
  std::vector<std::unique_ptr<BatchBuffer>> idle_;  // of batch_size images, handed from call to call
};

}  // namespace swsl
