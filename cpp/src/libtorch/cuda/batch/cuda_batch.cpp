#include "libtorch/cuda/batch/cuda_batch.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "image/buffer.h"
#include "libtorch/cuda/batch/packing.h"
#include "libtorch/cuda/batch/passes.h"
#include "libtorch/cuda/check.h"
#include "libtorch/cuda/own_stream.h"
#include "libtorch/tensor_engine.h"
#include "resample/normalization.h"

namespace swsl {
namespace {

using namespace resample;
using cuda::check;

void copy_to_device(void* to, const void* from, std::size_t size, cudaStream_t stream) {
  check(cudaMemcpyAsync(to, from, size, cudaMemcpyHostToDevice, stream));
}

[[noreturn]] void out_of_memory(at::Device device) {
  throw std::runtime_error("out of memory on " + device.str() +
                           " for the pixels of a batch; take a smaller batch_size");
}

Element element(at::ScalarType dtype) {
  return dtype == at::kFloat ? Element::float32 : dtype == at::kHalf ? Element::float16 : Element::bfloat16;
}

// Pinned memory and its twin on the GPU, handed out piece by piece. Pieces never move: when room runs out,
// another segment is added, and before the next batch all of them become one.
class Staging {
 public:
  struct Piece {
    std::uint8_t *host, *device;
  };

  Piece take(std::size_t bytes) {
    if (segments_.empty() || segments_.back().used + bytes > segments_.back().size())
      add(std::max(bytes, least));
    Segment& segment = segments_.back();
    const Piece piece{segment.host.data_ptr<std::uint8_t>() + segment.used,
                      segment.device.data_ptr<std::uint8_t>() + segment.used};
    segment.used += (bytes + 255) / 256 * 256;
    return piece;
  }

  void reset() {
    std::size_t total = 0;
    for (const auto& segment : segments_) total += segment.size();
    if (segments_.size() > 1) {
      segments_.clear();
      add(total);
    }
    if (!segments_.empty()) segments_.front().used = 0;
  }

  explicit Staging(at::Device device) : device_(device) {}

 private:
  static constexpr std::size_t least = std::size_t{16} << 20;

  struct Segment {
    at::Tensor host, device;
    std::size_t used = 0;
    std::size_t size() const { return static_cast<std::size_t>(host.numel()); }
  };

  void add(std::size_t bytes) {
    const auto size = static_cast<std::int64_t>(bytes);
    segments_.push_back({at::empty({size}, at::TensorOptions(at::kByte).pinned_memory(true)),
                         at::empty({size}, at::TensorOptions(device_).dtype(at::kByte))});
  }

  const at::Device device_;
  std::vector<Segment> segments_;
};

class CudaBatch final : public BatchBuffer {
 public:
  explicit CudaBatch(const BatchBufferOptions& options)
      : spec_(options.preprocessor.spec()),
        device_(options.device),
        dtype_(scalar_type(options.dtype)),
        layout_(options.layout),
        with_pixels_(options.with_pixels),
        packing_(spec_),
        own_stream_(device_),
        stream_(own_stream_.get()),
        staging_(device_),
        done_(c10::DeviceType::CUDA),
        places_(static_cast<std::size_t>(options.batch_size)) {
    const c10::cuda::CUDAStreamGuard guard(stream_);
    const Normalization normalization = make_normalization(spec_);
    const auto bytes = [](std::size_t size) { return static_cast<std::int64_t>(size); };
    const auto on_device = at::TensorOptions(device_).dtype(at::kByte),
               pinned = at::TensorOptions(at::kByte).pinned_memory(true);
    normalization_ = at::empty({bytes(sizeof normalization)}, on_device);
    host_descriptors_ = at::empty({bytes(places_.size() * sizeof(PackedImage))}, pinned);
    descriptors_ = at::empty({host_descriptors_.numel()}, on_device);
    const auto format =
        layout_ == Layout::channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
    output_ = at::empty({options.batch_size, 3, spec_.height, spec_.width},
                        at::TensorOptions(device_).dtype(dtype_).memory_format(format));
    copy_to_device(normalization_.data_ptr(), &normalization, sizeof normalization, stream_);
    stream_.synchronize();
    if (options.nvjpeg != nullptr) nvjpeg_.emplace(options.nvjpeg, options.batch_size);
  }

  ~CudaBatch() override {
    try {
      stream_.synchronize();  // the memory that it still uses goes back
    } catch (const std::exception&) {
    }
  }

  std::string prepare(const ImageSource& image, std::size_t place,
                      const std::function<void()>& when_read) override {
    UseJpeg use_jpeg;
    if (nvjpeg_)
      use_jpeg = [&](const EncodedImage& jpeg, int height, int width) {
        return add(jpeg, height, width, place);
      };
    return with_pixels_(image, when_read, [&](const ImageView& pixels) { add(pixels, place); }, use_jpeg);
  }

  void take(std::span<const std::size_t> places, const Use& use) override {
    const c10::cuda::CUDAStreamGuard guard(stream_);
    decode(places);
    std::vector<PackedImage>& images = images_;
    images.clear();
    std::size_t middle = 0;
    for (const std::size_t place : places) {
      const Place& slot = places_.at(place);
      images.push_back(slot.plan.describe(slot.packed, slot.decoded));
      middle += slot.plan.middle_bytes;
    }
    grow(middle_, middle);
    if (!images.empty()) {
      const std::int64_t blocks = arrange(images, middle_.data_ptr<std::uint8_t>());
      std::memcpy(host_descriptors_.data_ptr(), images.data(), images.size() * sizeof(PackedImage));
      copy_to_device(descriptors_.data_ptr(), host_descriptors_.data_ptr(),
                     images.size() * sizeof(PackedImage), stream_);
      const PackedBatch batch{static_cast<const PackedImage*>(descriptors_.data_ptr()),
                              static_cast<int>(images.size()),
                              spec_.height,
                              spec_.width,
                              static_cast<const Normalization*>(normalization_.data_ptr()),
                              output_.data_ptr(),
                              element(dtype_),
                              layout_ == Layout::channels_last};
      check(run_passes(batch, blocks, stream_));
    }
    done_.record(stream_);
    {
      const std::lock_guard lock(mutex_);
      taken_ = true;
    }
    use(as_batch(output_.narrow(0, 0, static_cast<std::int64_t>(places.size()))));
  }

 private:
  struct Place {
    PackedPlan plan{};
    const std::uint8_t* packed = nullptr;   // on the GPU
    const std::uint8_t* decoded = nullptr;  // likewise, if nvJPEG decoded it
    bool encoded = false;                   // nvJPEG is to decode it:
    std::string name;
    detail::Buffer bytes;
    std::size_t size = 0;
  };

  void add(const ImageView& pixels, std::size_t place) {
    if (pixels.data == nullptr || pixels.height < 1 || pixels.width < 1)
      throw std::invalid_argument("image is " + std::to_string(pixels.height) + " × " +
                                  std::to_string(pixels.width) +
                                  " (height × width), expected at least one pixel");
    Place& slot = places_.at(place);
    slot.plan = packing_.plan(pixels.height, pixels.width);
    slot.encoded = false;
    slot.decoded = nullptr;
    stage(slot, [&](std::uint8_t* memory) { packing_.write(slot.plan, pixels, memory); });
  }

  bool add(const EncodedImage& jpeg, int height, int width, std::size_t place) {
    const auto* bytes = static_cast<const std::uint8_t*>(jpeg.data);
    if (!nvjpeg_->takes({bytes, jpeg.size}, place)) return false;
    Place& slot = places_.at(place);
    slot.plan = packing_.plan_decoded(height, width, decoded_stride(width));
    slot.encoded = true;
    stage(slot, [&](std::uint8_t* memory) { packing_.write_tables(slot.plan, memory); });
    slot.name = jpeg.name;  // and the bytes only now: of the last batch's, some may have been on their way
    slot.size = jpeg.size;
    std::memcpy(slot.bytes.reserve(jpeg.size), bytes, jpeg.size);
    return true;
  }

  // On the way to the GPU: slot.plan.bytes that `write` writes. Before the last batch has been computed it
  // does not begin.
  template <typename Write>
  void stage(Place& slot, const Write& write) {
    const c10::cuda::CUDAStreamGuard guard(stream_);
    Staging::Piece piece;
    {
      const std::lock_guard lock(mutex_);
      try {
        if (taken_) {
          done_.synchronize();
          staging_.reset();
          taken_ = false;
        }
        piece = staging_.take(slot.plan.bytes);
      } catch (const c10::OutOfMemoryError&) {
        out_of_memory(device_);
      }
    }
    write(piece.host);
    copy_to_device(piece.device, piece.host, slot.plan.bytes, stream_);
    slot.packed = piece.device;
  }

  // The JPEGs among the images, by nvJPEG; those that it refuses after all as on any other device.
  void decode(std::span<const std::size_t> places) {
    jpegs_.clear();
    places_of_jpegs_.clear();
    std::size_t bytes = 0;
    for (const std::size_t place : places)
      if (places_.at(place).encoded) {
        places_of_jpegs_.push_back(place);
        bytes += decoded_bytes(places_[place].plan);
      }
    if (places_of_jpegs_.empty()) return;
    grow(decoded_, bytes);
    std::uint8_t* pixels = decoded_.data_ptr<std::uint8_t>();
    for (const std::size_t place : places_of_jpegs_) {
      Place& slot = places_[place];
      slot.decoded = pixels;
      jpegs_.push_back({{slot.bytes.data(), slot.size}, pixels, slot.plan.row_stride});
      pixels += decoded_bytes(slot.plan);
    }
    for (const std::size_t refused : nvjpeg_->decode(jpegs_, stream_)) {
      const std::size_t place = places_of_jpegs_[refused];
      Place& slot = places_[place];
      const EncodedImage jpeg{slot.bytes.data(), slot.size, slot.name};
      const std::string error = with_pixels_(jpeg, {}, [&](const ImageView& view) { add(view, place); }, {});
      if (!error.empty()) throw std::runtime_error(error);  // plain_jpeg has seen to it that there is none
    }
  }

  static std::size_t decoded_stride(int width) { return (std::size_t{3} * width + 3) / 4 * 4; }

  // Of the whole image, and what the kernels may read behind it.
  static std::size_t decoded_bytes(const PackedPlan& plan) {
    return (plan.row_stride * plan.geometry.rows.source + 16 + 255) / 256 * 256;
  }

  // Memory of the stream's device, whose contents go.
  void grow(at::Tensor& memory, std::size_t bytes) {
    if (memory.defined() && static_cast<std::size_t>(memory.numel()) >= bytes) return;
    memory = at::Tensor();
    try {
      memory = at::empty({static_cast<std::int64_t>(bytes + bytes / 4)}, descriptors_.options());
    } catch (const c10::OutOfMemoryError&) {
      out_of_memory(device_);
    }
  }

  const PreprocessSpec spec_;
  const at::Device device_;
  const at::ScalarType dtype_;
  const Layout layout_;
  const WithPixels with_pixels_;
  const Packing packing_;
  const OwnStream own_stream_;
  const c10::cuda::CUDAStream stream_;
  std::mutex mutex_;
  Staging staging_;     // with mutex_ held
  bool taken_ = false;  // likewise: the next image begins a new batch
  c10::Event done_;     // with the last batch
  std::vector<Place> places_;
  std::vector<PackedImage> images_;  // of the batch that is taken
  at::Tensor normalization_, host_descriptors_, descriptors_, middle_, output_;
  at::Tensor decoded_;  // by nvJPEG
  std::optional<NvjpegDecoder> nvjpeg_;
  std::vector<DeviceJpeg> jpegs_;  // of the batch that is taken
  std::vector<std::size_t> places_of_jpegs_;
};

}  // namespace

std::unique_ptr<BatchBuffer> make_cuda_batch(const BatchBufferOptions& options) {
  try {
    return std::make_unique<CudaBatch>(options);
  } catch (const c10::OutOfMemoryError&) {
    out_of_memory(at::Device(options.device));
  }
}

}  // namespace swsl
