// A batch in the making: many threads bring images, then one thread takes the batch.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <swsl/api.h>
#include <swsl/batch.h>
#include <swsl/preprocessor.h>
#include <swsl/runner.h>

namespace swsl {

class Nvjpeg;

// What is wrong with an image that was to be prepared, "" if nothing is, and the seconds of work.
struct Prepared {
  std::string error;
  double seconds = 0;
};

class BatchBuffer {
 public:
  virtual ~BatchBuffer() = default;

  // Prepares an image as number `place` of the batch. Returns what is wrong with it, "" if nothing is.
  // `when_read` is called once the image's file has been read and before anything is computed. Any number of
  // threads, each with a place of its own.
  virtual std::string prepare(const ImageSource& image, std::size_t place,
                              const std::function<void()>& when_read) = 0;

  using Use = std::function<void(const Batch& batch)>;

  // Calls `use` with the images at `places`, ascending, in this order: N×3×H×W, there only during the call.
  // On a GPU it is called with the stream as the current one on which the batch is being made, so that
  // batches of several buffers do not wait for each other. `prepare` then begins a new batch.
  virtual void take(std::span<const std::size_t> places, const Use& use) = 0;
};

// What to do with the pixels of an image.
using UsePixels = std::function<void(const ImageView&)>;

// What to do with a JPEG that a GPU may decode (plain_jpeg.h), whose bytes stay only during the call. False:
// it is not done, and the pixels are wanted.
using UseJpeg = std::function<bool(const EncodedImage& jpeg, int height, int width)>;

// Decodes an image and calls `use` with its pixels, or `use_jpeg`, if there is one, first. Returns what is
// wrong with the image, also what these throw about it.
using WithPixels = std::function<std::string(const ImageSource& image, const std::function<void()>& when_read,
                                             const UsePixels& use, const UseJpeg& use_jpeg)>;

// Of a batch that goes to a CUDA device. The pixels get there as soon as an image is decoded, or as the whole
// batch is made.
struct BatchBufferOptions {
  const Preprocessor& preprocessor;
  std::string device;
  ElementType dtype = ElementType::float32;
  Layout layout = Layout::planar;
  int batch_size = 1;
  WithPixels with_pixels;
  std::shared_ptr<const Nvjpeg> nvjpeg;  // null, or on this device
};

// Batches of float32 in the CPU's memory.
class SWSL_API FloatBuffer final : public BatchBuffer {
 public:
  // As BatchBuffer::prepare, into `output`.
  using Write = std::function<std::string(const ImageSource& image, float* output,
                                          const std::function<void()>& when_read)>;

  // memory: batch_size images of 3 × height × width.
  FloatBuffer(int height, int width, std::shared_ptr<float> memory, Write write);

  std::string prepare(const ImageSource& image, std::size_t place,
                      const std::function<void()>& when_read) override;
  void take(std::span<const std::size_t> places, const Use& use) override;

 private:
  const int height_, width_;
  const std::size_t image_size_;
  const std::shared_ptr<float> memory_;
  const Write write_;
};

}  // namespace swsl
