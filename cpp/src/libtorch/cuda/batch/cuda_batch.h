// Batches that a GPU makes of decoded images, with the same pixels as the CPU.
#pragma once

#include <functional>
#include <memory>

#include <c10/core/Device.h>

#include <swsl/preprocessor.h>
#include "libtorch/cuda/nvjpeg_decoder.h"
#include "run/batch_buffer.h"

namespace swsl {

// What to do with the pixels of an image.
using UsePixels = std::function<void(const ImageView&)>;

// What to do with a JPEG that a GPU may decode (plain_jpeg.h), whose bytes stay only during the call. False:
// it is not done, and the pixels are wanted.
using UseJpeg = std::function<bool(const EncodedImage& jpeg, int height, int width)>;

// Decodes an image and calls `use` with its pixels, or `use_jpeg`, if there is one, first. Returns what is
// wrong with the image, also what these throw about it.
using WithPixels = std::function<std::string(const ImageSource& image, const std::function<void()>& when_read,
                                             const UsePixels& use, const UseJpeg& use_jpeg)>;

// dtype: kFloat, kHalf or kBFloat16. Pixels are copied to the GPU as soon as an image is decoded, on a stream
// of this buffer; `take` enqueues two kernels there. After the largest batch nothing is allocated. nvjpeg, on
// the same device or null: decodes what JPEGs it can, in one go, when the batch is taken.
std::unique_ptr<BatchBuffer> make_cuda_batch(const PreprocessSpec& spec, at::Device device,
                                             at::ScalarType dtype, Layout layout, int batch_size,
                                             WithPixels with_pixels, std::shared_ptr<const Nvjpeg> nvjpeg);

}  // namespace swsl
