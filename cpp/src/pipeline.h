// Images through two stages, in order: many threads prepare images, one or a few compute whole batches of them.
//
// Image i has place i % capacity from when it is pushed to when its result is popped, and batch b the buffer b % size of the
// ring. As a place is free again only after its image has been computed and popped, nothing is written too early.
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

#include <ATen/core/Tensor.h>

#include <swsl/runner.h>

#include "batch_buffer.h"

namespace swsl {

struct PipelineOptions {
  int batch_size = 1;
  int workers = 1;
  int at_once = 1;  // batches in the forward pass at a time

  std::function<std::unique_ptr<BatchBuffer>()> make_buffer;  // for batch_size images
  // Brings the image into the buffer, at `place`; returns what is wrong with it, "" if nothing is.
  std::function<std::string(BatchBuffer& buffer, const ImageSource& image, std::size_t place)> prepare;
  // A batch of prepared images to one row for each. Called by `at_once` threads.
  BatchBuffer::Compute compute;
};

class Pipeline {
 public:
  struct Item {
    ImageSource image;
    std::string error;
    at::Tensor row;  // of what `compute` returned; undefined where there is an error
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
  void prepare_images();
  void compute_batches();
  void compute_batch(std::size_t begin, std::size_t count);
  void fail();
  void stop_and_join();
  std::size_t slot_of(std::size_t image) const { return image / batch_size_ % ring_.size(); }
  bool pop_is_due() const { return popped_ < computed_ || error_ || (finished_ && popped_ == pushed_); }

  const PipelineOptions options_;
  const std::size_t batch_size_;
  std::vector<std::unique_ptr<BatchBuffer>> ring_;  // made when first needed
  std::vector<std::size_t> prepared_;  // images of each that are ready to be computed, failed ones among them
  std::vector<Item> items_;

  mutable std::mutex mutex_;
  mutable std::condition_variable room_, pushed_more_, batch_ready_, turn_, result_ready_;
  // Images that have come so far: popped ≤ computed ≤ started (their batch's forward pass) ≤ taken by a worker ≤ pushed ≤
  // popped + capacity.
  std::size_t pushed_ = 0, taken_ = 0, started_ = 0, computed_ = 0, popped_ = 0;
  bool finished_ = false;
  bool stop_ = false;
  std::exception_ptr error_;
  std::vector<std::thread> threads_;
};

}  // namespace swsl
