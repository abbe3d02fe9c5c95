// Batches that a GPU makes of decoded images, with the same pixels as the CPU.
#pragma once

#include <functional>
#include <memory>

#include <c10/core/Device.h>

#include "batch_buffer.h"
#include "swsl/preprocessor.h"

namespace swsl {

// Decodes an image and calls `use` with its pixels, or returns what is wrong with it, also with what `use` throws about it.
using WithPixels =
    std::function<std::string(const ImageSource& image, const std::function<void()>& when_read, const std::function<void(const ImageView&)>& use)>;

// dtype: kFloat, kHalf or kBFloat16. Pixels are copied to the GPU as soon as an image is decoded, on a stream of this buffer; `take`
// enqueues two kernels there. After the largest batch nothing is allocated.
std::unique_ptr<BatchBuffer> make_cuda_batch(const PreprocessSpec& spec, at::Device device, at::ScalarType dtype, Layout layout, int batch_size,
                                             WithPixels with_pixels);

}  // namespace swsl
