// The kernels of the CPU engine as its plan calls them: plain structs and function pointers, no torch.
//
// Activations live in *lines* of 64 bytes: one pixel of 16 float32 or 32 bfloat16 channels. A tensor is
// [channel block][image][row][column] lines, so that a 1×1 convolution reads neighbouring lines as
// neighbouring pixels. A line is 16 *steps* of 4 bytes: a step is one float32 channel or a pair of bfloat16
// channels, and one multiply-add takes one broadcast step and 16 weight steps (one per output channel), in
// both types alike.
//
// Every kernel is thread-safe: it touches only what its arguments point to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace swsl::cpu {

enum class Isa { portable, neon, avx2, avx512, avx512bf16, amx };

inline constexpr std::ptrdiff_t line_bytes = 64;
inline constexpr int line_steps = 16;
inline constexpr int step_bytes = 4;
inline constexpr int vector_width = 16;   // float32 sums in one vector
inline constexpr int matrix_pixels = 32;  // of a matrix tile at most

// One tile: rows × columns output pixels by 1 or 2 vectors of 16 output channels.
struct TileArgs {
  const char* input;  // the tile's first pixel at the first block
  const std::ptrdiff_t*
      block_offsets;  // bytes from `input`, one per block of the sum (a channel block and tap)
  int blocks;
  int steps;                // steps of each block
  std::ptrdiff_t row_step;  // bytes from the tile's first row to its second
  const char* weights;      // [block][step][vectors × 16] steps
  const float* bias;        // [vectors × 16]
  char* output;
  std::ptrdiff_t output_block_step;  // bytes from one output channel block to the next
  const std::int32_t* output_lines;  // line of each pixel, from `output`
  const char* residual;              // null, or added before the ReLU; laid out as the output
  std::ptrdiff_t residual_block_step;
  const std::int32_t* residual_lines;
  int line_row_step;  // entries of *_lines from the tile's first row to its second
  bool relu;
  bool float_output;     // bfloat16 kernels: write float32 lines of 16 channels
  const char* prefetch;  // what to bring into L2 meanwhile, or null
  int prefetch_lines;    // lines of it per block
  // Of a matrix tile only. Where its pixels run on into the border, the lines of the output and the residual
  // are -1 there.
  int pixels;
  std::ptrdiff_t pixel_bytes;  // from one pixel's input to the next one's
};
using TileKernel = void (*)(const TileArgs&);

// One row of a grouped 3×3 convolution whose groups are narrower than a vector: 16 output channels that need
// input channels of one line only.
struct GroupedRowArgs {
  const char* input;        // the first tap of the first pixel
  std::ptrdiff_t row_step;  // bytes from one input row to the next
  const std::int32_t*
      permutations;  // [step][16]: the step of the input line that each output channel multiplies
  int steps;
  const char* weights;  // [kernel row][step][kernel column][16] steps
  const float* bias;    // [16]
  char* output;         // where this vector starts in the first pixel's line; pixels follow one another
  bool relu;
};
using GroupedRowKernel = void (*)(const GroupedRowArgs&);

// The maximum or the scaled sum of a window of lines.
struct PoolArgs {
  const char* input;
  int rows, columns;        // of the window
  std::ptrdiff_t row_step;  // bytes
  float scale;              // of the sum
  char* output;
};
using PoolKernel = void (*)(const PoolArgs&);

struct KernelSet {
  Isa isa;
  bool bfloat16;
  int max_pixels;   // of a tile; a grouped row has at most 2 × max_pixels columns (stride 1) or max_pixels
                    // (stride 2)
  int max_vectors;  // of a tile
  // Null where no such tile exists. `pixel_bytes` is the distance between neighbouring pixels' inputs.
  TileKernel (*tile)(int rows, int columns, int vectors, int pixel_bytes);
  GroupedRowKernel (*grouped_row)(int columns, int stride);
  PoolKernel max_pool, average_pool;
  // Multiply-adds that touch registers only, to know what the processor could do. `factors` are 32 floats;
  // returns how many floating-point operations it did.
  double (*peak_loop)(const float* factors, int rounds);
  // Where the processor multiplies matrices: a tile of up to matrix_pixels pixels at equal distances by 2
  // vectors, whose blocks have 16 steps, takes the place of all other tiles and of the grouped rows. Else
  // null.
  TileKernel matrix_tile = nullptr;
  // A thread's first and last act with matrix tiles; see InUse.
  void (*configure)() = nullptr;
  void (*release)() = nullptr;

  int line_channels() const { return bfloat16 ? 32 : 16; }
  int line_vectors() const { return bfloat16 ? 2 : 1; }
  int channel_bytes() const { return bfloat16 ? 2 : 4; }
};

const KernelSet& portable_kernels();
const KernelSet& portable_bfloat16_kernels();
const KernelSet& neon_kernels();
const KernelSet& avx2_kernels();
const KernelSet& avx2_bfloat16_kernels();
const KernelSet& avx512_kernels();
const KernelSet& avx512bf16_kernels();
const KernelSet& amx_kernels();

// Whether this processor and its operating system can run them.
bool supported(Isa isa);
// For float32 or bfloat16; null where there are none, or this processor cannot run them.
const KernelSet* kernels(Isa isa, bool bfloat16);
const KernelSet& best_kernels(bool bfloat16);
const char* name(Isa isa);
// Why a processor's matrix tiles are left alone, after "; "; empty where it has none, or they are used.
std::string why_no_tiles();

// A thread that calls kernels of a set, from here to the end of the block.
class InUse {
 public:
  explicit InUse(const KernelSet& kernels) : kernels_(kernels) {
    if (kernels_.configure != nullptr) kernels_.configure();
  }
  ~InUse() {
    if (kernels_.release != nullptr) kernels_.release();
  }
  InUse(const InUse&) = delete;

 private:
  const KernelSet& kernels_;
};

}  // namespace swsl::cpu
