// Batches that a GPU makes of decoded images, with the same pixels as the CPU.
#pragma once

#include <functional>
#include <memory>

#include <swsl/preprocessor.h>
#include "libtorch/cuda/nvjpeg_decoder.h"
#include "run/batch_buffer.h"

namespace swsl {

// Pixels are copied to the GPU as soon as an image is decoded, on a stream
// of this buffer; `take` enqueues two kernels there. After the largest batch nothing is allocated. nvjpeg, on
// the same device or null: decodes what JPEGs it can, in one go, when the batch is taken.
std::unique_ptr<BatchBuffer> make_cuda_batch(const BatchBufferOptions& options);

}  // namespace swsl
