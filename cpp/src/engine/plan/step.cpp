#include "engine/plan/step.h"
#include "engine/bfloat16.h"

#include <algorithm>
#include <cstring>

namespace swsl::cpu {
namespace {

// What a chunk of tiles reads again and again for every panel should stay in L2.
constexpr double tile_range_bytes = 400e3;

std::vector<std::int32_t> line_table(const Plane& plane, int images) {
  std::vector<std::int32_t> lines;
  lines.reserve(static_cast<std::size_t>(images) * plane.height * plane.width);
  for (int image = 0; image < images; ++image)
    for (int y = 0; y < plane.height; ++y)
      for (int x = 0; x < plane.width; ++x)
        lines.push_back(
            static_cast<std::int32_t>((image * plane.image_step + y * plane.pitch) / line_bytes + x));
  return lines;
}

// A plane's lines in the order of matrix tiles; -1 where these run on into the border.
std::vector<std::int32_t> matrix_lines(const std::vector<std::int32_t>& pixels,
                                       const std::vector<std::int32_t>& lines) {
  std::vector<std::int32_t> ordered;
  ordered.reserve(pixels.size());
  for (const std::int32_t pixel : pixels) ordered.push_back(pixel < 0 ? -1 : lines[pixel]);
  return ordered;
}

// One row of one image: float32 planes to interleaved channels.
void interleave_row(const float* from, int channels, std::ptrdiff_t channel_step, int width, bool bfloat16,
                    char* to) {
  for (int x = 0; x < width; ++x)
    for (int channel = 0; channel < channels; ++channel) {
      const float value = from[channel * channel_step + x];
      if (bfloat16) {
        const std::uint16_t narrow = to_bfloat16(value);
        std::memcpy(to, &narrow, sizeof narrow);
        to += sizeof narrow;
      } else {
        std::memcpy(to, &value, sizeof value);
        to += sizeof value;
      }
    }
}

}  // namespace

LayerTime describe(const Plan::Step& step, const PackedNetwork& network, const std::vector<Plane>& planes,
                   int batch) {
  const auto size = [](const Plane& plane) {
    return std::to_string(plane.channels) + "×" + std::to_string(plane.height) + "×" +
           std::to_string(plane.width);
  };
  LayerTime time;
  if (step.layer < 0) {
    time.kernel = "interleave";
    time.shape = size(planes[network.network.input]);
    return time;
  }
  const Layer& layer = network.network.layers[step.layer];
  const Plane& to = planes[layer.output];
  time.shape = size(planes[layer.input]) + " → " + size(to);
  if (step.kind == Plan::Step::Kind::pool) {
    time.kernel = layer.operation == Operation::max_pool ? "max pool" : "average pool";
    return time;
  }
  const Window& w = layer.window;
  time.kernel = std::to_string(w.kernel_height) + "×" + std::to_string(w.kernel_width) +
                (step.kind == Plan::Step::Kind::grouped_rows ? " grouped rows" : " tiles");
  time.multiply_adds = 1.0 * batch * to.height * to.width * layer.out_channels *
                       (layer.in_channels / layer.groups) * w.kernel_height * w.kernel_width;
  return time;
}

void Plan::build_convolution(Step& step, int images, int threads) {
  const Layer& layer = network_.network.layers[step.layer];
  const PackedConvolution& packed = network_.convolutions[step.layer];
  const KernelSet& kernels = *network_.kernels;
  const Window& w = layer.window;
  const Plane& from = planes_[layer.input];
  const Plane& to = planes_[layer.output];
  const bool first = packed.kernel == ConvolutionKernel::first;
  const std::ptrdiff_t column_bytes = from.column_bytes, pixel_bytes = column_bytes * w.stride_width;
  step.row_step = from.pitch * w.stride_height;
  step.pixel_bytes = pixel_bytes;
  // From the interior's first pixel to the first tap of output pixel (y, x) of an image.
  const auto tap = [&](int image, int y, int x) {
    return image * from.image_step + (y * w.stride_height - w.pad_height) * from.pitch +
           (x * w.stride_width - w.pad_width) * column_bytes;
  };

  if (packed.kernel == ConvolutionKernel::grouped_row) {
    step.kind = Step::Kind::grouped_rows;
    const int longest = w.stride_width == 1 ? 2 * kernels.max_pixels : kernels.max_pixels;
    const int parts = (to.width + longest - 1) / longest;
    for (int image = 0; image < images; ++image)
      for (int y = 0; y < to.height; ++y)
        for (int part = 0; part < parts; ++part) {
          const int x = to.width * part / parts, end = to.width * (part + 1) / parts;
          step.rows.push_back({tap(image, y, x), image * to.image_step + y * to.pitch + x * line_bytes,
                               kernels.grouped_row(end - x, w.stride_width)});
        }
    step.panel_ranges = std::min<int>(static_cast<int>(packed.panels.size()), 4);
    step.tile_ranges =
        std::min<int>(static_cast<int>(step.rows.size()), std::max(1, threads * 8 / step.panel_ranges));
    step.chunks = step.tile_ranges * step.panel_ranges;
    return;
  }

  step.kind = Step::Kind::tiles;
  const auto add_tile = [&](std::ptrdiff_t input, int pixel, int rows, int columns) {
    const int bytes = static_cast<int>(pixel_bytes);
    step.tiles.push_back(
        {input, pixel, {kernels.tile(rows, columns, 1, bytes), kernels.tile(rows, columns, 2, bytes)}});
  };
  std::vector<std::int32_t> matrix_order;  // pixels of the output as matrix tiles have them
  const bool flat = !first && w.kernel_height == 1 && w.kernel_width == 1 && w.stride_height == 1 &&
                    w.stride_width == 1 && from.pad == 0;
  const bool any_width = kernels.matrix_tile == nullptr &&
                         kernels.tile(1, kernels.max_pixels, 1, static_cast<int>(pixel_bytes)) != nullptr;
  const int most = any_width ? kernels.max_pixels : 1;
  const int pixels = images * to.height * to.width;
  if (kernels.matrix_tile != nullptr) {
    // A tile goes on as long as pixels lie at the distances that it reads, over borders and rows.
    for (int image = 0; image < images; ++image)
      for (int y = 0; y < to.height; ++y)
        for (int x = 0; x < to.width; ++x) {
          const std::ptrdiff_t input = tap(image, y, x);
          const std::ptrdiff_t beyond = step.tiles.empty() ? -1 : input - step.tiles.back().input;
          if (beyond < 0 || beyond % pixel_bytes != 0 || beyond / pixel_bytes >= matrix_pixels) {
            step.tiles.push_back(
                {input, static_cast<int>(matrix_order.size()), {nullptr, kernels.matrix_tile}});
            matrix_order.resize(matrix_order.size() + matrix_pixels, -1);
          }
          Tile& tile = step.tiles.back();
          const auto position = static_cast<int>((input - tile.input) / pixel_bytes);
          matrix_order[tile.pixel + position] = (image * to.height + y) * to.width + x;
          tile.pixels = position + 1;
        }
    overrun_ = std::max<std::size_t>(overrun_, matrix_pixels * pixel_bytes);
  } else if (flat) {
    const int count = (pixels + most - 1) / most;
    for (int i = 0; i < count; ++i) {
      const int begin = static_cast<int>(static_cast<long>(pixels) * i / count),
                end = static_cast<int>(static_cast<long>(pixels) * (i + 1) / count);
      add_tile(begin * line_bytes, begin, 1, end - begin);
    }
  } else {
    const int parts = (to.width + most - 1) / most;
    const bool pairs = parts == 1 && most > 1 && 2 * to.width <= most;
    for (int image = 0; image < images; ++image)
      for (int y = 0; y < to.height; ++y) {
        const bool pair = pairs && y + 1 < to.height;
        for (int part = 0; part < parts; ++part) {
          const int x = to.width * part / parts, end = to.width * (part + 1) / parts;
          add_tile(tap(image, y, x), (image * to.height + y) * to.width + x, pair ? 2 : 1, end - x);
        }
        if (pair) ++y;
      }
  }
  int blocks = 0;
  for (const Panel& panel : packed.panels) blocks = std::max(blocks, panel.blocks);
  const int taps = w.kernel_height * w.kernel_width;
  for (int block = 0; block < blocks; ++block) {
    const int per_row = blocks / w.kernel_height;
    const int ky = first ? block / per_row : block % taps / w.kernel_width,
              kx = first ? 0 : block % taps % w.kernel_width;
    step.block_offsets.push_back((first ? block % per_row * line_bytes : block / taps * from.block_step) +
                                 ky * w.dilation_height * from.pitch + kx * w.dilation_width * column_bytes);
  }
  step.output_lines = line_table(to, images);
  if (layer.residual >= 0) step.residual_lines = line_table(planes_[layer.residual], images);
  if (kernels.matrix_tile != nullptr) {
    step.output_lines = matrix_lines(matrix_order, step.output_lines);
    if (layer.residual >= 0) step.residual_lines = matrix_lines(matrix_order, step.residual_lines);
  }

  const int tiles = static_cast<int>(step.tiles.size()), panels = static_cast<int>(packed.panels.size());
  const double input_bytes = 1.0 * pixels * w.stride_height * w.stride_width * layer.in_channels /
                             layer.groups * kernels.channel_bytes();
  const bool heavy_weights = packed.bytes > 1.5 * input_bytes || tiles < 2 * threads;
  if (layer.groups > 1 || heavy_weights) {
    // Every weight is read by one thread only; panels are enough to go round.
    step.panel_ranges = panels;
    step.tile_ranges = std::clamp(4 * threads / panels, 1, tiles);
    step.prefetch = packed.bytes > (256 << 10);
  } else {
    step.tile_ranges =
        std::clamp(static_cast<int>(input_bytes / tile_range_bytes), std::min(tiles, 4 * threads), tiles);
    step.panel_ranges = 1;
  }
  step.chunks = step.tile_ranges * step.panel_ranges;
}

void Plan::run_tiles(const Step& step, int image, int chunk) const {
  const Layer& layer = network_.network.layers[step.layer];
  const PackedConvolution& packed = network_.convolutions[step.layer];
  const KernelSet& kernels = *network_.kernels;
  const Plane& from = planes_[layer.input];
  const Plane& to = planes_[layer.output];
  const char* input = at(from, image);
  char* output = at(to, image);
  const char* residual = layer.residual >= 0 ? at(planes_[layer.residual], image) : nullptr;
  const int tiles = static_cast<int>(step.tiles.size()), panels = static_cast<int>(packed.panels.size());
  const int tile_range = chunk / step.panel_ranges, panel_range = chunk % step.panel_ranges;
  const int first_tile = static_cast<int>(static_cast<long>(tiles) * tile_range / step.tile_ranges);
  const int last_tile = static_cast<int>(static_cast<long>(tiles) * (tile_range + 1) / step.tile_ranges);
  const int first_panel = panels * panel_range / step.panel_ranges,
            last_panel = panels * (panel_range + 1) / step.panel_ranges;
  const int line_channels = to.floats ? vector_width : kernels.line_channels();

  TileArgs args{};
  args.block_offsets = step.block_offsets.data();
  args.row_step = step.row_step;
  args.output_block_step = to.block_step;
  args.line_row_step = to.width;
  args.relu = layer.relu;
  args.float_output = to.floats;
  args.pixel_bytes = step.pixel_bytes;
  for (int p = first_panel; p < last_panel; ++p) {
    const Panel& panel = packed.panels[p];
    const std::ptrdiff_t to_channel = panel.first_channel / line_channels * to.block_step +
                                      panel.first_channel % line_channels * kernels.channel_bytes();
    const char* panel_input = input + panel.first_block * from.block_step + panel.first_step * step_bytes;
    args.blocks = panel.blocks;
    args.steps = panel.steps;
    args.weights = network_.weights.get() + panel.weights;
    args.bias = packed.bias.data() + panel.first_channel;
    args.output = output + to_channel;
    if (residual != nullptr) {
      args.residual_block_step = planes_[layer.residual].block_step;
      args.residual = residual + panel.first_channel / kernels.line_channels() * args.residual_block_step +
                      panel.first_channel % kernels.line_channels() * kernels.channel_bytes();
    }
    if (step.prefetch && p + 1 < panels) {
      const int block_lines = panel.steps * panel.vectors, count = last_tile - first_tile;
      args.prefetch_lines = (block_lines + count - 1) / count;
      args.prefetch = network_.weights.get() + packed.panels[p + 1].weights;
    } else {
      args.prefetch = nullptr;
    }
    for (int t = first_tile; t < last_tile; ++t) {
      const Tile& tile = step.tiles[t];
      args.input = panel_input + tile.input;
      args.pixels = tile.pixels;
      args.output_lines = step.output_lines.data() + tile.pixel;
      if (residual != nullptr) args.residual_lines = step.residual_lines.data() + tile.pixel;
      tile.kernels[panel.vectors - 1](args);
      if (args.prefetch != nullptr)
        args.prefetch += static_cast<std::ptrdiff_t>(args.prefetch_lines) * panel.blocks * line_bytes;
    }
  }
}

void Plan::run_grouped_rows(const Step& step, int image, int chunk) const {
  const Layer& layer = network_.network.layers[step.layer];
  const PackedConvolution& packed = network_.convolutions[step.layer];
  const KernelSet& kernels = *network_.kernels;
  const Plane& from = planes_[layer.input];
  const Plane& to = planes_[layer.output];
  const int rows = static_cast<int>(step.rows.size()), panels = static_cast<int>(packed.panels.size());
  const int row_range = chunk / step.panel_ranges, panel_range = chunk % step.panel_ranges;
  const int first_row = rows * row_range / step.tile_ranges,
            last_row = rows * (row_range + 1) / step.tile_ranges;
  GroupedRowArgs args{};
  args.row_step = from.pitch;
  args.relu = layer.relu;
  for (int p = panels * panel_range / step.panel_ranges; p < panels * (panel_range + 1) / step.panel_ranges;
       ++p) {
    const Panel& panel = packed.panels[p];
    const int vector = panel.first_channel / vector_width % kernels.line_vectors();
    args.steps = panel.blocks / 3;
    args.permutations =
        packed.permutations.data() + static_cast<std::ptrdiff_t>(vector) * args.steps * vector_width;
    args.weights = network_.weights.get() + panel.weights;
    args.bias = packed.bias.data() + panel.first_channel;
    const char* input = at(from, image) + panel.first_block * from.block_step;
    char* output =
        at(to, image) + panel.first_block * to.block_step + vector * vector_width * kernels.channel_bytes();
    for (int r = first_row; r < last_row; ++r) {
      args.input = input + step.rows[r].input;
      args.output = output + step.rows[r].output;
      step.rows[r].kernel(args);
    }
  }
}

void Plan::run_pool(const Step& step, int image, int chunk) const {
  const Layer& layer = network_.network.layers[step.layer];
  const KernelSet& kernels = *network_.kernels;
  const Plane& from = planes_[layer.input];
  const Plane& to = planes_[layer.output];
  const Window& w = layer.window;
  PoolArgs args{};
  args.row_step = from.pitch;
  if (layer.operation == Operation::global_average_pool) {
    const int block = chunk % to.blocks, local = chunk / to.blocks;
    args.input = at(from, image) + local * from.image_step + block * from.block_step;
    args.output = at(to, image) + local * to.image_step + block * to.block_step;
    args.rows = from.height;
    args.columns = from.width;
    args.scale = 1.0f / static_cast<float>(from.height * from.width);
    kernels.average_pool(args);
    return;
  }
  const int local = chunk / to.height, y = chunk % to.height;
  const auto kernel = layer.operation == Operation::max_pool ? kernels.max_pool : kernels.average_pool;
  const int top = y * w.stride_height - w.pad_height;
  const int first_row = std::max(top, 0), last_row = std::min(top + w.kernel_height, from.height);
  for (int block = 0; block < to.blocks; ++block)
    for (int x = 0; x < to.width; ++x) {
      const int left = x * w.stride_width - w.pad_width;
      const int first_column = std::max(left, 0), last_column = std::min(left + w.kernel_width, from.width);
      args.input = at(from, image) + local * from.image_step + block * from.block_step +
                   first_row * from.pitch + first_column * line_bytes;
      args.output =
          at(to, image) + local * to.image_step + block * to.block_step + y * to.pitch + x * line_bytes;
      args.rows = last_row - first_row;
      args.columns = last_column - first_column;
      args.scale = 1.0f / static_cast<float>(w.area(y, x, from.height, from.width));
      kernel(args);
    }
}

// A chunk is an eighth of an image's rows.
void Plan::run_interleave(const Step&, int image, int chunk, const float* input) const {
  const Plane& plane = planes_[network_.network.input];
  const bool narrow = network_.kernels->bfloat16;
  const int local = chunk / 8, first = plane.height * (chunk % 8) / 8,
            last = plane.height * (chunk % 8 + 1) / 8;
  const float* source =
      input + static_cast<std::ptrdiff_t>(image + local) * plane.channels * plane.height * plane.width;
  char* to = at(plane, image) + local * plane.image_step;
  for (int y = first; y < last; ++y) {
    // The last pair of a bfloat16 row may take in what follows it, with a zero weight: it must not be a NaN.
    if (plane.pad == 0)
      std::memset(to + y * plane.pitch + plane.width * plane.column_bytes, 0,
                  plane.pitch - plane.width * plane.column_bytes);
    interleave_row(source + static_cast<std::ptrdiff_t>(y) * plane.width, plane.channels,
                   static_cast<std::ptrdiff_t>(plane.height) * plane.width, plane.width, narrow,
                   to + y * plane.pitch);
  }
}

}  // namespace swsl::cpu
