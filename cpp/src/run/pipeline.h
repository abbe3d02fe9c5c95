// Images through two stages, in order: many threads prepare images, one or a few compute whole batches of
// them.
//
// Image i has place i % capacity from when it is pushed to when its result is popped. A worker that takes an
// image puts it into the newest batch, or begins the next one, where that is full or has been started. Batch
// b has the buffer b % size of the ring: nobody begins it before batch b - size has been computed.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <swsl/runner.h>

#include "run/batch_buffer.h"

namespace swsl {

struct PipelineOptions {
  int batch_size = 1;
  int workers = 1;
  int at_once = 1;                                    // batches in the forward pass at a time
  std::optional<std::chrono::microseconds> max_wait;  // as StreamOptions

  std::function<std::unique_ptr<BatchBuffer>()> make_buffer;  // for batch_size images
  // Brings the image into the buffer, at `place`.
  std::function<Prepared(BatchBuffer& buffer, const ImageSource& image, std::size_t place)> prepare;
  // A batch of prepared images to one row of `columns` for each; returns the seconds of it. Called by
  // `at_once` threads.
  int columns = 0;
  std::function<double(const Batch& batch, float* rows)> compute;
};

class Pipeline {
 public:
  struct Item {
    ImageSource image;
    std::string error;
    Spent spent;
    std::vector<float> row;  // of what `compute` made; empty where there is an error
  };

  explicit Pipeline(PipelineOptions options);
  ~Pipeline();
  Pipeline(const Pipeline&) = delete;

  std::size_t under_way() const;
  std::size_t capacity() const { return items_.size(); }
  void push(ImageSource image);
  void finish();
  std::optional<Item> pop();
  bool wait_for(std::chrono::milliseconds time) const;

 private:
  using Clock = std::chrono::steady_clock;

  struct Batch {
    std::unique_ptr<BatchBuffer> buffer;  // made when first needed, kept for the batches to come
    std::size_t begin = 0, count = 0;     // the images in it
    std::size_t prepared = 0;             // of these, failed ones among them
  };

  void prepare_images();
  void compute_batches();
  void compute_batch(const Batch& batch);
  void fail();
  void stop_and_join();
  Batch& slot(std::size_t number) { return ring_[number % ring_.size()]; }
  bool begins_a_batch() { return begun_ == started_ || slot(begun_ - 1).count == batch_size_; }
  bool image_can_be_taken() {
    return taken_ < pushed_ && (!begins_a_batch() || begun_ < computed_batches_ + ring_.size());
  }
  std::optional<Clock::time_point> next_starts_at();
  bool pop_is_due() const { return popped_ < computed_ || error_ || (finished_ && popped_ == pushed_); }

  const PipelineOptions options_;
  const std::size_t batch_size_;
  std::vector<Batch> ring_;
  std::vector<Item> items_;

  mutable std::mutex mutex_;
  mutable std::condition_variable room_, pushed_more_, batch_ready_, turn_, result_ready_;
  // Images that have come so far: popped ≤ computed ≤ taken by a worker ≤ pushed ≤ popped + capacity.
  std::size_t pushed_ = 0, taken_ = 0, computed_ = 0, popped_ = 0;
  // Batches: computed ≤ started (their forward pass) ≤ begun ≤ computed + size of the ring.
  std::size_t begun_ = 0, started_ = 0, computed_batches_ = 0;
  Clock::time_point last_push_;
  bool finished_ = false;
  bool stop_ = false;
  std::exception_ptr error_;
  std::vector<std::thread> threads_;
};

}  // namespace swsl
