#include "engine/float_batch.h"

#include <bit>
#include <stdexcept>
#include <string>

#include "engine/bfloat16.h"

namespace swsl {
namespace {

template <typename Element, typename Convert>
void gather(const Batch& batch, float* to, const Convert& convert) {
  const auto* from = static_cast<const Element*>(batch.data);
  const auto& [count, channels, height, width] = batch.shape;
  const auto& [by_image, by_channel, by_row, by_column] = batch.strides;
  for (std::int64_t n = 0; n < count; ++n)
    for (std::int64_t c = 0; c < channels; ++c)
      for (std::int64_t y = 0; y < height; ++y) {
        const Element* row = from + n * by_image + c * by_channel + y * by_row;
        for (std::int64_t x = 0; x < width; ++x) *to++ = convert(row[x * by_column]);
      }
}

}  // namespace

float from_float16(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u)  // infinities and NaNs
    return std::bit_cast<float>(sign | 0x7f800000u | magnitude << 13);
  // The exponent moved to its place is too small by the difference of the biases, subnormal numbers included.
  const float moved = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(moved) | sign);
}

FloatBatch::FloatBatch(const Batch& batch) : data_(static_cast<const float*>(batch.data)) {
  if (batch.cuda >= 0)
    throw std::invalid_argument("batch: expected one in the CPU's memory, got one on CUDA device " +
                                std::to_string(batch.cuda));
  const auto whole = Batch::contiguous(data_, batch.shape);
  bool as_it_is = batch.type == ElementType::float32;
  for (std::size_t i = 0; i < 4; ++i) as_it_is &= batch.shape[i] <= 1 || batch.strides[i] == whole.strides[i];
  if (as_it_is) return;
  copy_.resize(static_cast<std::size_t>(batch.shape[0] * whole.strides[0]));
  switch (batch.type) {
    case ElementType::float32: gather<float>(batch, copy_.data(), [](float value) { return value; }); break;
    case ElementType::bfloat16: gather<std::uint16_t>(batch, copy_.data(), cpu::from_bfloat16); break;
    case ElementType::float16: gather<std::uint16_t>(batch, copy_.data(), from_float16); break;
  }
  data_ = copy_.data();
}

}  // namespace swsl
