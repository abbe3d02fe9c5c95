#include "run/batch_buffer.h"

#include <algorithm>
#include <utility>

#include <ATen/ops/empty.h>

namespace swsl {
namespace {

at::Tensor allocate(std::vector<std::int64_t> shape, int batch_size, bool pinned) {
  shape.insert(shape.begin(), batch_size);
  return at::empty(shape, at::TensorOptions(at::kFloat).pinned_memory(pinned));
}

}  // namespace

TensorBatch::TensorBatch(std::vector<std::int64_t> image_shape, int batch_size, bool pinned, Write write)
    : write_(std::move(write)),
      batch_(allocate(std::move(image_shape), batch_size, pinned)),
      image_size_(static_cast<std::size_t>(batch_.numel() / batch_size)) {}

std::string TensorBatch::prepare(const ImageSource& image, std::size_t place,
                                 const std::function<void()>& when_read) {
  return write_(image, batch_.data_ptr<float>() + place * image_size_, when_read);
}

at::Tensor TensorBatch::take(std::span<const std::size_t> places, const Compute& compute) {
  float* images = batch_.data_ptr<float>();
  for (std::size_t i = 0; i < places.size(); ++i)  // they close ranks
    if (places[i] != i) std::copy_n(images + places[i] * image_size_, image_size_, images + i * image_size_);
  return compute(batch_.narrow(0, 0, static_cast<std::int64_t>(places.size())));
}

}  // namespace swsl
