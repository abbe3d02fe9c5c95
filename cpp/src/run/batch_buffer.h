// A batch in the making: many threads bring images, then one thread takes the batch.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <swsl/runner.h>

namespace swsl {

class BatchBuffer {
 public:
  virtual ~BatchBuffer() = default;

  // Prepares an image as number `place` of the batch. Returns what is wrong with it, "" if nothing is.
  // `when_read` is called once the image's file has been read and before anything is computed. Any number of
  // threads, each with a place of its own.
  virtual std::string prepare(const ImageSource& image, std::size_t place,
                              const std::function<void()>& when_read) = 0;

  using Compute = std::function<at::Tensor(const at::Tensor& batch)>;

  // What `compute` returns for the images at `places`, ascending, in this order: N×3×H×W. On a GPU it is
  // called with the stream as the current one on which the batch is being made, so that batches of several
  // buffers do not wait for each other. `prepare` then begins a new batch.
  virtual at::Tensor take(std::span<const std::size_t> places, const Compute& compute) = 0;
};

// Batches of float32 in the CPU's memory.
class TensorBatch final : public BatchBuffer {
 public:
  // As BatchBuffer::prepare, into `output`.
  using Write = std::function<std::string(const ImageSource& image, float* output,
                                          const std::function<void()>& when_read)>;

  // pinned: in memory that a GPU copies from fast.
  TensorBatch(std::vector<std::int64_t> image_shape, int batch_size, bool pinned, Write write);

  std::string prepare(const ImageSource& image, std::size_t place,
                      const std::function<void()>& when_read) override;
  at::Tensor take(std::span<const std::size_t> places, const Compute& compute) override;

 private:
  const Write write_;
  const at::Tensor batch_;
  const std::size_t image_size_;
};

}  // namespace swsl
