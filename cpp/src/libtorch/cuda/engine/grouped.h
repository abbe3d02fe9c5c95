// A grouped 3×3 convolution as dense products of 16×16 blocks: what its kernel and the host share.
//
// Tensor cores multiply 16 pixels × 16 channels by 16 × 16 weights. Groups of 4, 8 or 16 channels are merged
// into blocks of 16; weights between channels of different groups are zero. A thread block keeps some rows of
// the padded input, of one or two channel blocks, in shared memory. There, output pixel q = y·pitch + x finds
// its pixel under tap (ky, kx) at stride·q + ky·pitch + kx, so that 16 neighbouring q are a matrix with
// evenly spaced rows, across the ends of lines too; the few q with x beyond the image compute what nobody
// stores.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "resample/kernels/arithmetic.h"

namespace swsl::cuda {

constexpr int block_channels = 16;
constexpr int tile_pixels = 16;
constexpr int grouped_taps = 9;
constexpr int grouped_threads = 128;

struct GroupedShape {
  int images, height, width, channels;
  int stride;
  int out_height, out_width;
  int rows;     // of the output, that a thread block computes
  int at_once;  // channel blocks of a thread block: 1 or 2
};

// The zero before a line is also the one behind the line above.
SWSL_HOST_DEVICE static inline int pitch(const GroupedShape& s) { return s.width + 1; }

SWSL_HOST_DEVICE static inline int tiles(const GroupedShape& s) {
  return ((s.rows - 1) * pitch(s) + s.out_width + tile_pixels - 1) / tile_pixels;
}

// Pixels of one channel block that may be read in shared memory, those under outputs that nobody stores among
// them.
SWSL_HOST_DEVICE static inline int shared_pixels(const GroupedShape& s) {
  const int filled = ((s.rows - 1) * s.stride + 3) * pitch(s);
  const int read = s.stride * (tiles(s) * tile_pixels - 1) + 2 * pitch(s) + 3;
  return filled > read ? filled : read;
}

SWSL_HOST_DEVICE static inline std::size_t shared_bytes(const GroupedShape& s) {
  return static_cast<std::size_t>(shared_pixels(s)) * s.at_once * block_channels * 2 +
         sizeof(float) * tile_pixels * block_channels * (grouped_threads / 32);
}

// The pixel of the image that lies at `index` of the shared memory of a thread block that starts at output
// row `first`; −1 for the zeros around the image.
SWSL_HOST_DEVICE static inline int source_pixel(const GroupedShape& s, int first, int index) {
  const int y = first * s.stride - 1 + index / pitch(s), x = index % pitch(s) - 1;
  const bool filled = index / pitch(s) < (s.rows - 1) * s.stride + 3;
  return filled && y >= 0 && y < s.height && x >= 0 && x < s.width ? y * s.width + x : -1;
}

// The first of the 16 pixels under a tap of a tile; the next ones are `stride` further each.
SWSL_HOST_DEVICE static inline int tap_pixel(const GroupedShape& s, int tile, int tap) {
  return s.stride * tile * tile_pixels + tap / 3 * pitch(s) + tap % 3;
}

// The output pixel that a tile's row is, or −1.
SWSL_HOST_DEVICE static inline int output_pixel(const GroupedShape& s, int first, int tile, int row) {
  const int q = tile * tile_pixels + row, y = q / pitch(s), x = q % pitch(s);
  return x < s.out_width && y < s.rows && first + y < s.out_height ? (first + y) * s.out_width + x : -1;
}

// Where the weight from input channel `in` to output channel `out`, both of channel block `block`, lies.
SWSL_HOST_DEVICE static inline std::size_t weight_index(int block, int tap, int in, int out) {
  return ((static_cast<std::size_t>(block) * grouped_taps + tap) * block_channels + in) * block_channels +
         out;
}

// Whether the kernel computes it: 3×3, padding 1, as many channels out as in, and groups that fill blocks
// of 16.
inline bool is_grouped_case(int channels, int groups, int stride) {
  const int width = groups > 0 ? channels / groups : 0;
  return groups > 1 && (width == 4 || width == 8 || width == 16) && channels % block_channels == 0 &&
         (stride == 1 || stride == 2);
}

// Fills in the output's size and how much a thread block takes for `budget` bytes of shared memory. rows is 0
// if not even one fits.
inline GroupedShape make_grouped_shape(int images, int height, int width, int channels, int stride,
                                       std::size_t budget) {
  GroupedShape s{images, height, width, channels, stride, (height - 1) / stride + 1, (width - 1) / stride + 1,
                 0,      0};
  s.at_once = channels % (2 * block_channels) == 0 ? 2 : 1;
  int most = 0;
  for (s.rows = 1; s.rows <= s.out_height && shared_bytes(s) <= budget; ++s.rows) most = s.rows;
  const int parts = most == 0 ? 1 : (s.out_height + most - 1) / most;
  s.rows = most == 0 ? 0 : (s.out_height + parts - 1) / parts;  // as even as can be
  return s;
}

// weights: [channels][group_width][3][3].
inline std::vector<float> pack_grouped(const float* weights, int channels, int group_width) {
  std::vector<float> packed(static_cast<std::size_t>(channels) * grouped_taps * block_channels);
  for (int out = 0; out < channels; ++out)
    for (int i = 0; i < group_width; ++i)
      for (int tap = 0; tap < grouped_taps; ++tap) {
        const int in = out / group_width * group_width + i;
        packed[weight_index(out / block_channels, tap, in % block_channels, out % block_channels)] =
            weights[(static_cast<std::size_t>(out) * group_width + i) * grouped_taps + tap];
      }
  return packed;
}

}  // namespace swsl::cuda
