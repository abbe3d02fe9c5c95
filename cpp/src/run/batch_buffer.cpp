#include "run/batch_buffer.h"

#include <algorithm>
#include <utility>

namespace swsl {

FloatBuffer::FloatBuffer(int height, int width, std::shared_ptr<float> memory, Write write)
    : height_(height),
      width_(width),
      image_size_(std::size_t{3} * height * width),
      memory_(std::move(memory)),
      write_(std::move(write)) {}

std::string FloatBuffer::prepare(const ImageSource& image, std::size_t place,
                                 const std::function<void()>& when_read) {
  return write_(image, memory_.get() + place * image_size_, when_read);
}

void FloatBuffer::take(std::span<const std::size_t> places, const Use& use) {
  float* images = memory_.get();
  for (std::size_t i = 0; i < places.size(); ++i)  // they close ranks
    if (places[i] != i) std::copy_n(images + places[i] * image_size_, image_size_, images + i * image_size_);
  use(Batch::contiguous(images, {static_cast<std::int64_t>(places.size()), 3, height_, width_}));
}

}  // namespace swsl
