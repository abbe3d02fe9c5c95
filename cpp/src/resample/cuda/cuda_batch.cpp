#include "resample/cuda/cuda_batch.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "resample/cuda/passes.h"
#include "resample/normalization.h"
#include "resample/packing.h"

namespace swsl {
namespace {

using namespace resample;

void check(const char* error) {
  if (error != nullptr) throw std::runtime_error(std::string("CUDA: ") + error);
}

void copy_to_device(void* to, const void* from, std::size_t size, cudaStream_t stream) {
  const auto error = cudaMemcpyAsync(to, from, size, cudaMemcpyHostToDevice, stream);
  check(error == cudaSuccess ? nullptr : cudaGetErrorString(error));
}

Element element(at::ScalarType dtype) {
  return dtype == at::kFloat ? Element::float32 : dtype == at::kHalf ? Element::float16 : Element::bfloat16;
}

// Pinned memory and its twin on the GPU, handed out piece by piece. Pieces never move: when room runs out, another segment is
// added, and before the next batch all of them become one.
class Staging {
 public:
  struct Piece {
    std::uint8_t *host, *device;
  };

  Piece take(std::size_t bytes) {
    if (segments_.empty() || segments_.back().used + bytes > segments_.back().size()) add(std::max(bytes, least));
    Segment& segment = segments_.back();
    const Piece piece{segment.host.data_ptr<std::uint8_t>() + segment.used, segment.device.data_ptr<std::uint8_t>() + segment.used};
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
    segments_.push_back({at::empty({size}, at::TensorOptions(at::kByte).pinned_memory(true)), at::empty({size}, at::TensorOptions(device_).dtype(at::kByte))});
  }

  const at::Device device_;
  std::vector<Segment> segments_;
};

class CudaBatch final : public BatchBuffer {
 public:
  CudaBatch(const PreprocessSpec& spec, at::Device device, at::ScalarType dtype, Layout layout, int batch_size, WithPixels with_pixels)
      : spec_(spec),
        device_(device),
        dtype_(dtype),
        layout_(layout),
        with_pixels_(std::move(with_pixels)),
        packing_(spec),
        stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index())),
        staging_(device),
        done_(c10::DeviceType::CUDA),
        places_(static_cast<std::size_t>(batch_size)) {
    const c10::cuda::CUDAStreamGuard guard(stream_);
    const Normalization normalization = make_normalization(spec);
    const auto bytes = [](std::size_t size) { return static_cast<std::int64_t>(size); };
    const auto on_device = at::TensorOptions(device).dtype(at::kByte), pinned = at::TensorOptions(at::kByte).pinned_memory(true);
    normalization_ = at::empty({bytes(sizeof normalization)}, on_device);
    host_descriptors_ = at::empty({bytes(places_.size() * sizeof(PackedImage))}, pinned);
    descriptors_ = at::empty({host_descriptors_.numel()}, on_device);
    const auto format = layout == Layout::channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
    output_ = at::empty({batch_size, 3, spec.height, spec.width}, at::TensorOptions(device).dtype(dtype).memory_format(format));
    copy_to_device(normalization_.data_ptr(), &normalization, sizeof normalization, stream_);
    stream_.synchronize();
  }

  ~CudaBatch() override {
    try {
      stream_.synchronize();  // the memory that it still uses goes back
    } catch (const std::exception&) {
    }
  }

  std::string prepare(const ImageSource& image, std::size_t place, const std::function<void()>& when_read) override {
    return with_pixels_(image, when_read, [&](const ImageView& pixels) { add(pixels, place); });
  }

  at::Tensor take(std::span<const std::size_t> places, const Compute& compute) override {
    const c10::cuda::CUDAStreamGuard guard(stream_);
    std::vector<PackedImage>& images = images_;
    images.clear();
    std::size_t middle = 0;
    for (const std::size_t place : places) {
      images.push_back(places_.at(place).image);
      middle += places_[place].middle_bytes;
    }
    if (!middle_.defined() || static_cast<std::size_t>(middle_.numel()) < middle)
      middle_ = at::empty({static_cast<std::int64_t>(middle + middle / 4)}, descriptors_.options());
    if (!images.empty()) {
      const std::int64_t blocks = arrange(images, middle_.data_ptr<std::uint8_t>());
      std::memcpy(host_descriptors_.data_ptr(), images.data(), images.size() * sizeof(PackedImage));
      copy_to_device(descriptors_.data_ptr(), host_descriptors_.data_ptr(), images.size() * sizeof(PackedImage), stream_);
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
    return compute(output_.narrow(0, 0, static_cast<std::int64_t>(places.size())));
  }

 private:
  void add(const ImageView& pixels, std::size_t place) {
    if (pixels.data == nullptr || pixels.height < 1 || pixels.width < 1)
      throw std::invalid_argument("image is " + std::to_string(pixels.height) + " × " + std::to_string(pixels.width) +
                                  " (height × width), expected at least one pixel");
    const PackedPlan plan = packing_.plan(pixels.height, pixels.width);
    const c10::cuda::CUDAStreamGuard guard(stream_);
    Staging::Piece piece;
    {
      const std::lock_guard lock(mutex_);
      if (taken_) {
        done_.synchronize();  // what was staged for the last batch has been used
        staging_.reset();
        taken_ = false;
      }
      try {
        piece = staging_.take(plan.bytes);
      } catch (const c10::OutOfMemoryError&) {
        throw std::runtime_error("out of memory on " + device_.str() + " for the pixels of a batch; take a smaller batch_size");
      }
    }
    packing_.write(plan, pixels, piece.host);
    copy_to_device(piece.device, piece.host, plan.bytes, stream_);
    places_.at(place) = {plan.describe(piece.device), plan.middle_bytes};
  }

  struct Place {
    PackedImage image{};
    std::size_t middle_bytes = 0;
  };

  const PreprocessSpec spec_;
  const at::Device device_;
  const at::ScalarType dtype_;
  const Layout layout_;
  const WithPixels with_pixels_;
  const Packing packing_;
  const c10::cuda::CUDAStream stream_;
  std::mutex mutex_;
  Staging staging_;      // with mutex_ held
  bool taken_ = false;   // likewise: the next image begins a new batch
  c10::Event done_;      // with the last batch
  std::vector<Place> places_;
  std::vector<PackedImage> images_;  // of the batch that is taken
  at::Tensor normalization_, host_descriptors_, descriptors_, middle_, output_;
};

}  // namespace

std::unique_ptr<BatchBuffer> make_cuda_batch(const PreprocessSpec& spec, at::Device device, at::ScalarType dtype, Layout layout, int batch_size,
                                             WithPixels with_pixels) {
  return std::make_unique<CudaBatch>(spec, device, dtype, layout, batch_size, std::move(with_pixels));
}

}  // namespace swsl
