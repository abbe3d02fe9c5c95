// The decoder around nvJPEG, over functions that stand in for the library: no GPU is needed.
#include "check.h"

#if SWSL_NVJPEG

#include <algorithm>
#include <string>
#include <vector>

#include "libtorch/cuda/nvjpeg_decoder.h"
#include "libtorch/cuda/nvjpeg_functions.h"

namespace {

// What the library was asked for, and what it answers. A JPEG is one byte: 'g' is good, 'b' is bad, 'u' has
// an unsupported header, 'm' takes more memory than there is.
struct Library {
  bool engines = true, starts = true;
  int handles = 0, states = 0, headers = 0, ready_for = 0, synchronized = 0;
  std::vector<std::string> batches;
  std::vector<nvjpegImage_t> images;
} library;

const unsigned char* parsed = nullptr;

swsl::NvjpegFunctions functions() {
  library = {};
  swsl::NvjpegFunctions f{};
  f.create = [](nvjpegBackend_t backend, nvjpegDevAllocator_t*, nvjpegPinnedAllocator_t*, unsigned int,
                nvjpegHandle_t* handle) {
    if (!library.starts || (backend == NVJPEG_BACKEND_HARDWARE && !library.engines))
      return NVJPEG_STATUS_ARCH_MISMATCH;
    *handle = reinterpret_cast<nvjpegHandle_t>(&library);
    ++library.handles;
    return NVJPEG_STATUS_SUCCESS;
  };
  f.destroy = [](nvjpegHandle_t) { return --library.handles, NVJPEG_STATUS_SUCCESS; };
  f.create_state = [](nvjpegHandle_t, nvjpegJpegState_t* state) {
    *state = reinterpret_cast<nvjpegJpegState_t>(&library);
    return ++library.states, NVJPEG_STATUS_SUCCESS;
  };
  f.destroy_state = [](nvjpegJpegState_t) { return --library.states, NVJPEG_STATUS_SUCCESS; };
  f.create_header = [](nvjpegHandle_t, nvjpegJpegStream_t* header) {
    *header = reinterpret_cast<nvjpegJpegStream_t>(&library);
    return ++library.headers, NVJPEG_STATUS_SUCCESS;
  };
  f.destroy_header = [](nvjpegJpegStream_t) { return --library.headers, NVJPEG_STATUS_SUCCESS; };
  f.parse_header = [](nvjpegHandle_t, const unsigned char* data, size_t, nvjpegJpegStream_t) {
    return parsed = data, NVJPEG_STATUS_SUCCESS;
  };
  f.batched_supported = [](nvjpegHandle_t, nvjpegJpegStream_t, int* obstacle) {
    return *obstacle = *parsed == 'u', NVJPEG_STATUS_SUCCESS;
  };
  f.begin_batches = [](nvjpegHandle_t, nvjpegJpegState_t, int count, int threads,
                       nvjpegOutputFormat_t format) {
    CHECK(threads == 1 && format == NVJPEG_OUTPUT_RGBI);
    return library.ready_for = count, NVJPEG_STATUS_SUCCESS;
  };
  f.decode_batch = [](nvjpegHandle_t, nvjpegJpegState_t, const unsigned char* const* data, const size_t*,
                      nvjpegImage_t* images, cudaStream_t) {
    std::string batch;
    for (int i = 0; i < library.ready_for; ++i) batch += static_cast<char>(*data[i]);
    library.batches.push_back(batch);
    library.images.assign(images, images + batch.size());
    if (batch.find('b') == std::string::npos && batch.find('m') == std::string::npos)
      return NVJPEG_STATUS_SUCCESS;
    library.ready_for = 0;  // what has failed must begin anew
    return batch.find('m') == std::string::npos ? NVJPEG_STATUS_BAD_JPEG : NVJPEG_STATUS_ALLOCATOR_FAILURE;
  };
  f.synchronize = [](cudaStream_t) { return ++library.synchronized, cudaSuccess; };
  return f;
}

std::vector<std::size_t> decode(swsl::NvjpegDecoder& decoder, const std::string& jpegs) {
  std::vector<swsl::DeviceJpeg> batch;
  std::uint8_t pixels = 0;
  for (const char& jpeg : jpegs)
    batch.push_back({{reinterpret_cast<const std::uint8_t*>(&jpeg), 1}, &pixels, 12});
  library.batches.clear();
  return decoder.decode(batch, nullptr);
}

}  // namespace

TEST(a_batch_is_one_call) {
  const swsl::NvjpegFunctions all = functions();
  {
    swsl::NvjpegDecoder decoder(std::make_shared<swsl::Nvjpeg>(all), 8);
    for (int repeat = 0; repeat < 2; ++repeat) {
      CHECK(decode(decoder, "ggg").empty());
      CHECK(library.batches == std::vector<std::string>{"ggg"});
    }
    CHECK_EQ(library.images.front().pitch[0], std::size_t{12});
    CHECK(decode(decoder, "gg").empty());
    CHECK(decode(decoder, "").empty());
    CHECK(library.batches.empty());
    CHECK_EQ(library.synchronized, 0);
  }
  CHECK(library.handles == 0 && library.states == 0 && library.headers == 0);
}

TEST(a_bad_one_costs_the_good_ones_nothing) {
  const swsl::NvjpegFunctions all = functions();
  swsl::NvjpegDecoder decoder(std::make_shared<swsl::Nvjpeg>(all), 8);
  for (const std::string batch : {"b", "bg", "gggbgg", "bbbb", "gbgggggb"}) {
    std::vector<std::size_t> bad;
    for (std::size_t i = 0; i < batch.size(); ++i)
      if (batch[i] == 'b') bad.push_back(i);
    CHECK(decode(decoder, batch) == bad);
    std::size_t good = 0;  // each in one batch that was decoded
    for (const auto& part : library.batches)
      if (part.find('b') == std::string::npos) good += part.size();
    CHECK_EQ(good, batch.size() - bad.size());
    CHECK(decode(decoder, "gggg").empty());
  }
  CHECK_THROWS(std::runtime_error, "out of memory on the GPU for nvJPEG, which decodes 2 images",
               decode(decoder, "gm"));
}

TEST(what_the_card_can_do_is_asked) {
  const swsl::NvjpegFunctions all = functions();
  const std::uint8_t good = 'g', unsupported = 'u';
  for (const bool engines : {true, false}) {
    library.engines = engines;
    const auto nvjpeg = std::make_shared<swsl::Nvjpeg>(all);
    CHECK_EQ(std::string(nvjpeg->decoded_by()).find("engines") != std::string::npos, engines);
    swsl::NvjpegDecoder decoder(nvjpeg, 2);
    CHECK(decoder.takes({&good, 1}, 1));
    CHECK_EQ(decoder.takes({&unsupported, 1}, 1), !engines);
  }
  CHECK_EQ(library.headers, 0);
  library.starts = false;
  CHECK_THROWS(std::invalid_argument, "nvjpeg: nvJPEG cannot start: status 7", swsl::Nvjpeg(all));
}

// Where there is a library, it has all functions; where there is none, the error says so.
TEST(the_library_itself) {
  try {
    CHECK(swsl::nvjpeg_functions().decode_batch != nullptr);
  } catch (const std::invalid_argument& error) {
    CHECK(std::string(error.what()).starts_with("nvjpeg: libnvjpeg.so"));
    CHECK(std::string(error.what()).find("nvidia-nvjpeg") != std::string::npos);
  }
}

#else

TEST(skipped_in_a_build_without_nvjpeg) {}

#endif
