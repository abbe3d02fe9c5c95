#include "libtorch/cuda/nvjpeg_decoder.h"

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#if SWSL_NVJPEG

#include <dlfcn.h>

#include <c10/cuda/CUDAGuard.h>

#include "libtorch/cuda/check.h"
#include "libtorch/cuda/nvjpeg_functions.h"

namespace swsl {
namespace {

constexpr char advice[] =
    ": install PyPI's nvidia-nvjpeg beside torch, or CUDA's toolkit, or leave the option out";

template <typename Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr)
    throw std::invalid_argument(std::string("nvjpeg: the library that was found has no ") + name + advice);
}

NvjpegFunctions load() {
  const std::string name = "libnvjpeg.so." + std::to_string(NVJPEG_VER_MAJOR);
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);  // for good
  if (library == nullptr) {
    const char* why = dlerror();
    throw std::invalid_argument("nvjpeg: " + (why != nullptr ? std::string(why) : name) + advice);
  }
  NvjpegFunctions functions{};
  find(library, "nvjpegCreateEx", functions.create);
  find(library, "nvjpegDestroy", functions.destroy);
  find(library, "nvjpegJpegStateCreate", functions.create_state);
  find(library, "nvjpegJpegStateDestroy", functions.destroy_state);
  find(library, "nvjpegJpegStreamCreate", functions.create_header);
  find(library, "nvjpegJpegStreamDestroy", functions.destroy_header);
  find(library, "nvjpegJpegStreamParseHeader", functions.parse_header);
  find(library, "nvjpegDecodeBatchedSupported", functions.batched_supported);
  find(library, "nvjpegDecodeBatchedInitialize", functions.begin_batches);
  find(library, "nvjpegDecodeBatched", functions.decode_batch);
  functions.synchronize = cudaStreamSynchronize;
  return functions;
}

std::string failed(const char* what, nvjpegStatus_t status) {
  return std::string("nvJPEG cannot ") + what + ": status " + std::to_string(status) + " of nvjpeg.h";
}

void check(const char* what, nvjpegStatus_t status) {
  if (status != NVJPEG_STATUS_SUCCESS) throw std::runtime_error(failed(what, status));
}

}  // namespace

const NvjpegFunctions& nvjpeg_functions() {
  static const NvjpegFunctions functions = load();
  return functions;
}

struct Nvjpeg::State {
  const NvjpegFunctions& functions;
  const std::optional<at::Device> device;
  nvjpegHandle_t handle = nullptr;
  bool engines = false;  // of the card, made for JPEGs

  void create() {
    const auto guard = on_device();
    nvjpegStatus_t status = NVJPEG_STATUS_SUCCESS;
    for (const nvjpegBackend_t backend : {NVJPEG_BACKEND_HARDWARE, NVJPEG_BACKEND_GPU_HYBRID}) {
      // libjpeg interpolates colours, too.
      status =
          functions.create(backend, nullptr, nullptr, NVJPEG_FLAGS_UPSAMPLING_WITH_INTERPOLATION, &handle);
      engines = backend == NVJPEG_BACKEND_HARDWARE;
      if (status == NVJPEG_STATUS_SUCCESS) return;
    }
    handle = nullptr;
    throw std::invalid_argument("nvjpeg: " + failed("start", status) + "; leave the option out");
  }

  ~State() {
    if (handle == nullptr) return;
    const auto guard = on_device();
    functions.destroy(handle);
  }

  // Its objects belong to the device that was current when they were made.
  c10::cuda::OptionalCUDAGuard on_device() const { return c10::cuda::OptionalCUDAGuard(device); }
};

Nvjpeg::Nvjpeg(at::Device device) : state_(new State{nvjpeg_functions(), device}) { state_->create(); }
Nvjpeg::Nvjpeg(const NvjpegFunctions& functions) : state_(new State{functions, std::nullopt}) {
  state_->create();
}
Nvjpeg::~Nvjpeg() = default;

const char* Nvjpeg::decoded_by() const {
  return state_->engines ? "on the card's JPEG engines" : "in kernels where a batch has more than 50 of them";
}

struct NvjpegDecoder::State {
  const std::shared_ptr<const Nvjpeg> owner;
  const Nvjpeg::State& nvjpeg;
  const NvjpegFunctions& functions;
  nvjpegJpegState_t state = nullptr;
  std::vector<nvjpegJpegStream_t> headers{};  // one for each place, made when it is first needed
  int ready_for = 0;                          // images in a batch
  std::vector<const unsigned char*> bytes{};
  std::vector<std::size_t> sizes{};
  std::vector<nvjpegImage_t> images{};

  ~State() {
    const auto guard = nvjpeg.on_device();
    for (const nvjpegJpegStream_t header : headers)
      if (header != nullptr) functions.destroy_header(header);
    if (state != nullptr) functions.destroy_state(state);
  }

  bool decode(std::size_t begin, std::size_t end, cudaStream_t stream) {
    const int count = static_cast<int>(end - begin);
    if (std::exchange(ready_for, 0) != count)
      check("begin a batch",
            functions.begin_batches(nvjpeg.handle, state, count, /*max_cpu_threads=*/1, NVJPEG_OUTPUT_RGBI));
    const auto status = functions.decode_batch(nvjpeg.handle, state, bytes.data() + begin,
                                               sizes.data() + begin, images.data() + begin, stream);
    if (status == NVJPEG_STATUS_SUCCESS) {
      ready_for = count;
      return true;
    }
    if (status == NVJPEG_STATUS_ALLOCATOR_FAILURE)
      throw std::runtime_error("out of memory on the GPU for nvJPEG, which decodes " + std::to_string(count) +
                               " images at once; take a smaller batch_size");
    return false;
  }

  // A batch fails as a whole: its halves find out whose fault it was.
  void decode_all(std::size_t begin, std::size_t end, cudaStream_t stream,
                  std::vector<std::size_t>& refused) {
    const bool decoded = decode(begin, end, stream);
    if (decoded && end - begin == bytes.size()) return;
    cuda::check(functions.synchronize(stream));  // before the state is used again
    if (decoded) return;
    if (end - begin == 1) {
      refused.push_back(begin);
      return;
    }
    const std::size_t middle = begin + (end - begin) / 2;
    decode_all(begin, middle, stream, refused);
    decode_all(middle, end, stream, refused);
  }
};

NvjpegDecoder::NvjpegDecoder(std::shared_ptr<const Nvjpeg> nvjpeg, int batch_size)
    : state_(new State{nvjpeg, *nvjpeg->state_, nvjpeg->state_->functions}) {
  state_->headers.resize(static_cast<std::size_t>(batch_size));
  const auto guard = state_->nvjpeg.on_device();
  check("make a decoder", state_->functions.create_state(state_->nvjpeg.handle, &state_->state));
}

NvjpegDecoder::~NvjpegDecoder() = default;

bool NvjpegDecoder::takes(std::span<const std::uint8_t> jpeg, std::size_t place) {
  const State& state = *state_;
  if (!state.nvjpeg.engines) return true;  // the kernels do whatever plain_jpeg lets pass
  const auto guard = state.nvjpeg.on_device();
  nvjpegJpegStream_t& header = state_->headers.at(place);
  if (header == nullptr) check("make a parser", state.functions.create_header(state.nvjpeg.handle, &header));
  int obstacle = 1;
  return state.functions.parse_header(state.nvjpeg.handle, jpeg.data(), jpeg.size(), header) ==
             NVJPEG_STATUS_SUCCESS &&
         state.functions.batched_supported(state.nvjpeg.handle, header, &obstacle) == NVJPEG_STATUS_SUCCESS &&
         obstacle == 0;
}

std::vector<std::size_t> NvjpegDecoder::decode(std::span<const DeviceJpeg> jpegs, cudaStream_t stream) {
  State& state = *state_;
  state.bytes.clear();
  state.sizes.clear();
  state.images.clear();
  for (const DeviceJpeg& jpeg : jpegs) {
    state.bytes.push_back(jpeg.bytes.data());
    state.sizes.push_back(jpeg.bytes.size());
    nvjpegImage_t image{};
    image.channel[0] = jpeg.pixels;
    image.pitch[0] = jpeg.row_stride;
    state.images.push_back(image);
  }
  std::vector<std::size_t> refused;
  if (!jpegs.empty()) state.decode_all(0, jpegs.size(), stream, refused);
  return refused;
}

}  // namespace swsl

#else

namespace swsl {

struct Nvjpeg::State {};

Nvjpeg::Nvjpeg(at::Device) {
  throw std::invalid_argument(
      "nvjpeg: swsl was built without it: install PyPI's nvidia-nvjpeg beside torch, or CUDA's toolkit, and "
      "build swsl again");
}

Nvjpeg::~Nvjpeg() = default;
const char* Nvjpeg::decoded_by() const { return ""; }

struct NvjpegDecoder::State {};

NvjpegDecoder::NvjpegDecoder(std::shared_ptr<const Nvjpeg>, int) {}
NvjpegDecoder::~NvjpegDecoder() = default;
bool NvjpegDecoder::takes(std::span<const std::uint8_t>, std::size_t) { return false; }
std::vector<std::size_t> NvjpegDecoder::decode(std::span<const DeviceJpeg>, cudaStream_t) { return {}; }

}  // namespace swsl

#endif
