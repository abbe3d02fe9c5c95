// JPEGs decoded by a GPU through nvJPEG. Its pixels are not libjpeg's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <c10/core/Device.h>
#include <cuda_runtime_api.h>

namespace swsl {

struct NvjpegFunctions;

// nvJPEG on one device. The library is loaded when the first of these is made, so that swsl runs where it is
// missing. Any number of threads and of decoders.
class Nvjpeg {
 public:
  // Throws std::invalid_argument, about the option `nvjpeg`, where this build, the machine or the card lacks
  // it.
  explicit Nvjpeg(at::Device device);

  // Of other functions, on the current device: what the tests do.
  explicit Nvjpeg(const NvjpegFunctions& functions);

  ~Nvjpeg();

  const char* decoded_by() const;

 private:
  friend class NvjpegDecoder;
  struct State;
  std::unique_ptr<State> state_;
};

// A JPEG, in the host's memory until the work has been done, and where its pixels go on the device: RGB,
// `row_stride` bytes from one row to the next.
struct DeviceJpeg {
  std::span<const std::uint8_t> bytes;
  std::uint8_t* pixels;
  std::size_t row_stride;
};

// Decodes batches, one after the other.
class NvjpegDecoder {
 public:
  NvjpegDecoder(std::shared_ptr<const Nvjpeg> nvjpeg, int batch_size);
  ~NvjpegDecoder();

  // Whether the header promises that `decode` can do it. Any number of threads, each with a place of its own,
  // below batch_size.
  bool takes(std::span<const std::uint8_t> jpeg, std::size_t place);

  // Enqueues the decoding on the stream, of the current device. Returns the indices of those that nvJPEG
  // refused, whose pixels are undefined. The work before this has been done. Throws std::runtime_error for
  // what no single image is to blame for.
  std::vector<std::size_t> decode(std::span<const DeviceJpeg> jpegs, cudaStream_t stream);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace swsl
