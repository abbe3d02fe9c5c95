#include "libtorch/cuda/batch/passes.h"

#include "libtorch/cuda/launch.h"

namespace swsl::resample {
namespace {

struct Rgb {
  std::uint8_t value[3];
};

// `at` is a multiple of 4.
__device__ std::uint32_t load_word(const std::uint8_t* at) {
  return __ldg(reinterpret_cast<const std::uint32_t*>(at));
}

__device__ void store_word(std::uint8_t* at, std::uint32_t word) {
  *reinterpret_cast<std::uint32_t*>(at) = word;
}

__device__ std::int32_t byte_of(std::uint32_t word, int index) {
  return static_cast<std::int32_t>(word >> (8 * index) & 255);
}

// The 4 bytes that start `bits / 8` bytes into the 8 bytes low, high.
__device__ std::uint32_t shifted(std::uint32_t low, std::uint32_t high, int bits) {
  return __funnelshift_r(low, high, bits);
}

// One output pixel of a row of 3-byte pixels: four taps are 12 bytes, three words.
__device__ Rgb narrow(const std::uint8_t* row, const PackedAxis& axis, int x) {
  const std::int32_t first = 3 * axis.table[x], taps = axis.table[axis.count + x];
  const std::int32_t* coefficients = axis.table + 2 * axis.count + x;
  const std::uint8_t* at = row + (first & ~3);
  const int bits = 8 * (first & 3);
  std::int32_t red = rounding, green = rounding, blue = rounding;
  std::uint32_t w0 = load_word(at);
  for (int t = 0; t < taps; t += 4) {
    const std::uint32_t w1 = load_word(at + 4), w2 = load_word(at + 8), w3 = load_word(at + 12);
    const std::uint32_t a = shifted(w0, w1, bits), b = shifted(w1, w2, bits), c = shifted(w2, w3, bits);
    const std::int32_t k0 = coefficients[0], k1 = coefficients[axis.count];
    const std::int32_t k2 = coefficients[2 * axis.count], k3 = coefficients[3 * axis.count];
    red += byte_of(a, 0) * k0 + byte_of(a, 3) * k1 + byte_of(b, 2) * k2 + byte_of(c, 1) * k3;
    green += byte_of(a, 1) * k0 + byte_of(b, 0) * k1 + byte_of(b, 3) * k2 + byte_of(c, 2) * k3;
    blue += byte_of(a, 2) * k0 + byte_of(b, 1) * k1 + byte_of(c, 0) * k2 + byte_of(c, 3) * k3;
    coefficients += 4 * static_cast<std::ptrdiff_t>(axis.count);
    at += 12;
    w0 = w3;
  }
  return {{to_pixel(red), to_pixel(green), to_pixel(blue)}};
}

// Four neighbouring bytes of output row y, made of the words of a column.
__device__ std::uint32_t shorten(const std::uint8_t* column, std::int64_t stride, const PackedAxis& axis,
                                 int y) {
  const std::int32_t taps = axis.table[axis.count + y];
  const std::int32_t* coefficients = axis.table + 2 * axis.count + y;
  const std::uint8_t* at = column + axis.table[y] * stride;
  std::int32_t sums[4] = {rounding, rounding, rounding, rounding};
  for (int t = 0; t < taps; ++t) {
    const std::uint32_t word = load_word(at);
    for (int i = 0; i < 4; ++i) sums[i] += byte_of(word, i) * *coefficients;
    coefficients += axis.count;
    at += stride;
  }
  std::uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<std::uint32_t>(to_pixel(sums[i])) << (8 * i);
  return result;
}

__device__ void first_pass(const PackedBatch& batch, std::int64_t block, int thread) {
  int low = 0, high = batch.count;  // the last image whose first block is at most `block` lies in [low, high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (batch.images[middle].first_block <= block ? low : high) = middle;
  }
  const PackedImage& image = batch.images[low];
  const std::int64_t item = (block - image.first_block) * threads_per_block + thread;
  if (item >= first_pass_items(image)) return;
  if (image.vertical_first) {
    const std::int64_t words = image.row_stride / 4, y = item / words, word = item % words;
    store_word(image.middle + y * image.middle_stride + 4 * word,
               shorten(image.pixels + 4 * word, image.row_stride, image.rows, static_cast<int>(y)));
  } else {
    const std::int64_t y = item / image.columns.count, x = item % image.columns.count;
    const Rgb pixel = narrow(image.pixels + y * image.row_stride, image.columns, static_cast<int>(x));
    store_word(image.middle + y * image.middle_stride + 4 * x,
               pixel.value[0] | static_cast<std::uint32_t>(pixel.value[1]) << 8 |
                   static_cast<std::uint32_t>(pixel.value[2]) << 16);
  }
}

// `table`: the one of batch.normalization that has batch.element.
template <typename Value>
__device__ void second_pass(const PackedBatch& batch, const Value (&table)[3][256], std::int64_t block,
                            int thread) {
  const std::int64_t blocks = second_pass_blocks(batch),
                     plane = static_cast<std::int64_t>(batch.height) * batch.width;
  const std::int64_t number = block / blocks, item = block % blocks * threads_per_block + thread;
  if (item >= plane) return;
  const PackedImage& image = batch.images[number];
  const int y = static_cast<int>(item / batch.width) - image.rows.padding;
  const int x = static_cast<int>(item % batch.width) - image.columns.padding;
  Rgb pixel{};  // black before normalisation, where the image does not reach
  if (y >= 0 && y < image.rows.count && x >= 0 && x < image.columns.count) {
    if (image.vertical_first) {
      pixel = narrow(image.middle + y * image.middle_stride, image.columns, x);
    } else {
      const std::uint32_t word =
          shorten(image.middle + 4 * static_cast<std::int64_t>(x), image.middle_stride, image.rows, y);
      for (int c = 0; c < 3; ++c) pixel.value[c] = static_cast<std::uint8_t>(byte_of(word, c));
    }
  }
  Value* output = static_cast<Value*>(batch.output) + 3 * plane * number;
  for (int c = 0; c < 3; ++c)
    output[batch.interleaved ? 3 * item + c : c * plane + item] = table[c][pixel.value[c]];
}

__global__ void __launch_bounds__(threads_per_block) first_pass_kernel(PackedBatch batch) {
  first_pass(batch, blockIdx.x, static_cast<int>(threadIdx.x));
}

__global__ void __launch_bounds__(threads_per_block) second_pass_kernel(PackedBatch batch) {
  switch (batch.element) {
    case Element::float32:
      second_pass(batch, batch.normalization->float32, blockIdx.x, static_cast<int>(threadIdx.x));
      break;
    case Element::bfloat16:
      second_pass(batch, batch.normalization->bfloat16, blockIdx.x, static_cast<int>(threadIdx.x));
      break;
    case Element::float16:
      second_pass(batch, batch.normalization->float16, blockIdx.x, static_cast<int>(threadIdx.x));
      break;
  }
}

}  // namespace

const char* run_passes(const PackedBatch& batch, std::int64_t first_pass_blocks, cudaStream_t stream) {
  const std::int64_t second_pass_total = second_pass_blocks(batch) * batch.count;
  if (first_pass_blocks > most_blocks || second_pass_total > most_blocks)
    return "the batch has more pixels than one launch can take";
  if (batch.count == 0) return nullptr;
  const char* error = launch(first_pass_kernel, static_cast<unsigned>(first_pass_blocks), threads_per_block,
                             0, stream, batch);
  return error ? error
               : launch(second_pass_kernel, static_cast<unsigned>(second_pass_total), threads_per_block, 0,
                        stream, batch);
}

}  // namespace swsl::resample
