#include "engine/plan/plan.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "engine/plan/step.h"
#include "threads/thread_pool.h"

namespace swsl::cpu {
namespace {

std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Activations of one step that should stay in the last-level cache together.
constexpr double cached_bytes = 9e6;

}  // namespace

Plan::Plan(const PackedNetwork& network, int batch, int height, int width, int threads)
    : network_(network), batch_(batch), height_(height), width_(width) {
  lay_out(threads);
}

Plan::~Plan() = default;

// Shapes, group sizes, memory, then the steps.
void Plan::lay_out(int threads) {
  const auto& layers = network_.network.layers;
  const KernelSet& kernels = *network_.kernels;
  planes_.resize(network_.network.values);
  channels_ = layers.front().in_channels;
  const int end = static_cast<int>(layers.size());

  Plane& input = planes_[network_.network.input];
  input.channels = channels_;
  input.height = height_;
  input.width = width_;
  for (int i = 0; i < end; ++i) {
    const Layer& layer = layers[i];
    const Window& w = layer.window;
    const Plane& from = planes_[layer.input];
    Plane& to = planes_[layer.output];
    const bool convolution = layer.operation == Operation::convolution,
               global = layer.operation == Operation::global_average_pool;
    if ((layer.input == network_.network.input) != (i == 0))
      throw UnsupportedNetwork(
          layer.name + ": the batch must be read by the first operation, a convolution, and no other");
    if (convolution && layer.in_channels != from.channels)
      throw UnsupportedNetwork(layer.name + " expects " + std::to_string(layer.in_channels) +
                               " channels, its input has " + std::to_string(from.channels));
    to.channels = convolution ? layer.out_channels : from.channels;
    to.height = global ? 1 : w.rows(from.height);
    to.width = global ? 1 : w.columns(from.width);
    if (to.height < 1 || to.width < 1)
      throw UnsupportedNetwork(layer.name + " needs a larger image than " + std::to_string(height_) + "×" +
                               std::to_string(width_));
    if (convolution) planes_[layer.input].pad = std::max({from.pad, w.pad_height, w.pad_width});
    to.first = i;
    if (layer.residual >= 0) {
      const Plane& residual = planes_[layer.residual];
      if (residual.channels != to.channels || residual.height != to.height || residual.width != to.width)
        throw UnsupportedNetwork(layer.name + " is added to a value of another shape");
    }
  }
  planes_[network_.network.output].floats = true;

  // Group sizes: small enough for the caches, never shrinking from one layer to the next, dividing the batch.
  group_.assign(end, batch_);
  double limit = batch_;
  for (int i = end; i-- > 0;) {
    const Layer& layer = layers[i];
    double bytes = 0;
    for (int value : {layer.input, layer.output, layer.residual})
      if (value >= 0)
        bytes += 1.0 * planes_[value].channels * planes_[value].height * planes_[value].width *
                 kernels.channel_bytes();
    limit = std::min(limit, std::max(1.0, cached_bytes / bytes));
    int group = static_cast<int>(limit);
    while (batch_ % group != 0) --group;
    group_[i] = group;
  }
  for (int i = end - 1; i-- > 0;) group_[i] = std::min(group_[i], group_[i + 1]);

  place_planes();

  const auto add_tasks = [&](int first_step, int last_step, int group) {
    for (int image = 0; image < batch_; image += group)
      for (int step = first_step; step <= last_step; ++step) tasks_.push_back({step, image});
  };
  auto interleave = std::make_unique<Step>();
  interleave->kind = Step::Kind::interleave;
  interleave->images = group_[0];
  interleave->chunks = group_[0] * 8;
  steps_.push_back(std::move(interleave));
  int segment = 0;  // its first step
  for (int i = 0; i < end; ++i) {
    auto step = std::make_unique<Step>();
    step->layer = i;
    step->images = group_[i];
    if (layers[i].operation == Operation::convolution) {
      build_convolution(*step, group_[i], threads);
    } else {
      step->kind = Step::Kind::pool;
      const Plane& to = planes_[layers[i].output];
      step->chunks =
          group_[i] * (layers[i].operation == Operation::global_average_pool ? to.blocks : to.height);
    }
    steps_.push_back(std::move(step));
    if (i + 1 == end || group_[i + 1] != group_[i]) {
      add_tasks(segment, i + 1, group_[i]);
      segment = i + 2;
    }
  }
  queues_ = std::vector<Queue>(tasks_.size() * threads);
  arena_bytes_ += overrun_;
}

// Every plane gets its place in the arena: planes that are never needed at the same time share one, and a sum
// may take the place of what is added, which each of its elements is the last to read. The border of a plane
// that shares its place is cleared by the layer that makes the plane; others' borders stay zero.
void Plan::place_planes() {
  const auto& layers = network_.network.layers;
  const KernelSet& kernels = *network_.kernels;
  const int end = static_cast<int>(layers.size());
  std::vector<int> segment_first(end), segment_last(end);
  for (int i = 0; i < end; ++i)
    segment_first[i] = i > 0 && group_[i - 1] == group_[i] ? segment_first[i - 1] : i;
  for (int i = end; i-- > 0;)
    segment_last[i] = i + 1 < end && group_[i + 1] == group_[i] ? segment_last[i + 1] : i;

  for (auto& plane : planes_) plane.last = plane.first;
  for (int i = 0; i < end; ++i)
    for (int value : {layers[i].input, layers[i].residual})
      if (value >= 0) planes_[value].last = i;
  for (int value : {network_.network.output, layers.back().input}) {
    planes_[value].last = end;
    planes_[value].whole_batch = true;
  }
  // A value that crosses segments is there for the whole batch, from the producer's first group to the
  // consumer's last.
  for (auto& plane : planes_) {
    if (plane.channels == 0) continue;
    const int last = std::min(plane.last, end - 1);
    if (group_[plane.first] != group_[last]) plane.whole_batch = true;
    if (plane.whole_batch) {
      plane.first = segment_first[plane.first];
      plane.last = std::max(plane.last, segment_last[last]);
    }
    plane.images = plane.whole_batch ? batch_ : group_[plane.first];
  }

  for (int value = 0; value < network_.network.values; ++value) {
    Plane& plane = planes_[value];
    if (plane.channels == 0) continue;
    if (value == network_.network.input) {
      plane.column_bytes = static_cast<std::ptrdiff_t>(plane.channels) * kernels.channel_bytes();
      // Kernels read a row's last channels in whole steps, or in whole lines: what follows must be zeros.
      const int whole = kernels.matrix_tile != nullptr ? line_bytes : step_bytes;
      plane.pitch = round_up((plane.width + 2 * plane.pad) * plane.column_bytes + whole, step_bytes);
      plane.image_step = plane.pitch * (plane.height + 2 * plane.pad);
      plane.bytes = round_up(plane.image_step * plane.images + line_bytes, line_bytes);
      continue;
    }
    const int line_channels = plane.floats ? vector_width : kernels.line_channels();
    plane.blocks = static_cast<int>(round_up(plane.channels, kernels.line_channels())) / line_channels;
    plane.pitch = (plane.width + 2 * plane.pad) * line_bytes;
    plane.image_step = plane.pitch * (plane.height + 2 * plane.pad);
    // Blocks a multiple of 4 KiB apart would all compete for the same few sets of the caches.
    plane.block_step = round_up(plane.image_step * plane.images, 4096) + 16 * line_bytes;
    plane.bytes = plane.block_step * plane.blocks;
  }

  const auto takes_place_of = [&](const Plane& sum, const Plane& added) {
    const Layer& layer = layers[sum.first];
    return !sum.whole_batch && !added.whole_batch && layer.residual >= 0 &&
           &planes_[layer.residual] == &added && layer.input != layer.residual && added.last == sum.first &&
           sum.pad == 0 && added.pad == 0 && sum.floats == added.floats;
  };
  struct Room {
    std::size_t bytes = 0, offset = 0;
    std::vector<int> values;
  };
  std::vector<Room> rooms;
  std::vector<int> order;
  for (int value = 0; value < network_.network.values; ++value)
    if (planes_[value].bytes > 0) order.push_back(value);
  std::sort(order.begin(), order.end(), [&](int a, int b) { return planes_[a].bytes > planes_[b].bytes; });
  for (int value : order) {
    const Plane& plane = planes_[value];
    const auto fits = [&](const Room& room) {
      return std::all_of(room.values.begin(), room.values.end(), [&](int other) {
        const Plane& there = planes_[other];
        // The batch's own plane has a border of another kind.
        if (plane.blocks == 0 || there.blocks == 0) return false;
        return there.last < plane.first || there.first > plane.last || takes_place_of(plane, there) ||
               takes_place_of(there, plane);
      });
    };
    auto room = std::find_if(rooms.begin(), rooms.end(), fits);
    if (room == rooms.end()) {
      room = rooms.insert(rooms.end(), Room{plane.bytes, round_up(arena_bytes_, 4096), {}});
      arena_bytes_ = room->offset + plane.bytes;
    }
    room->values.push_back(value);
    planes_[value].offset = room->offset;
  }
  for (const Room& room : rooms)
    for (int value : room.values) planes_[value].shares = room.values.size() > 1;
}

// Borders of padded planes that share no place are zeros that nothing overwrites until another plan has had
// the arena.
void Plan::prepare(Arena& arena) {
  if (arena.bytes < arena_bytes_) {
    arena = {};
    arena = {allocate(arena_bytes_), arena_bytes_, nullptr};
  }
  arena_ = arena.memory.get();
  if (arena.prepared_for == this) return;
  for (const Plane& plane : planes_)
    if (plane.pad > 0 && !plane.shares) std::memset(arena_ + plane.offset, 0, plane.bytes);
  arena.prepared_for = this;
}

char* Plan::at(const Plane& plane, int image) const {
  return arena_ + plane.offset + plane.interior() + (plane.whole_batch ? image * plane.image_step : 0);
}

void Plan::execute(int last_layer, const float* input, ThreadPool& threads, std::vector<LayerTime>* times) {
  const int workers = threads.size();
  for (std::size_t t = 0; t < tasks_.size(); ++t) {
    const std::uint64_t chunks = steps_[tasks_[t].step]->chunks;
    for (int w = 0; w < workers; ++w)
      queues_[t * workers + w].range.store((chunks * w / workers) << 32 | chunks * (w + 1) / workers,
                                           std::memory_order_relaxed);
  }
  if (times != nullptr) {
    times->clear();
    for (const auto& step : steps_) times->push_back(describe(*step, network_, planes_, batch_));
  }
  threads.run([&](int worker) {
    const InUse in_use(*network_.kernels);
    auto before = std::chrono::steady_clock::now();
    for (std::size_t t = 0; t < tasks_.size(); ++t) {
      const Task& task = tasks_[t];
      const Step& step = *steps_[task.step];
      if (task.step > last_layer + 1) continue;
      // Its own share from the front, then what others have left, from the back.
      for (int turn = 0; turn < workers; ++turn) {
        auto& range = queues_[t * workers + (worker + turn) % workers].range;
        auto seen = range.load(std::memory_order_relaxed);
        while ((seen >> 32) < (seen & 0xffffffffu)) {
          const bool own = turn == 0;
          const auto next = own ? seen + (std::uint64_t{1} << 32) : seen - 1;
          if (!range.compare_exchange_weak(seen, next, std::memory_order_relaxed)) continue;
          run_chunk(step, task, static_cast<int>(own ? seen >> 32 : (seen & 0xffffffffu) - 1), input);
          seen = range.load(std::memory_order_relaxed);
        }
      }
      threads.barrier();
      if (worker == 0 && times != nullptr) {
        const auto now = std::chrono::steady_clock::now();
        (*times)[task.step].seconds += std::chrono::duration<double>(now - before).count();
        before = now;
      }
    }
  });
}

void Plan::run(const float* input, float* output, Arena& arena, ThreadPool& threads,
               std::vector<LayerTime>* times) {
  prepare(arena);
  execute(static_cast<int>(network_.network.layers.size()) - 1, input, threads, times);
  read(network_.network.output, output);
}

void Plan::run_features(const float* input, float* features, Arena& arena, ThreadPool& threads) {
  prepare(arena);
  execute(static_cast<int>(network_.network.layers.size()) - 2, input, threads, nullptr);
  read_features(features);
}

void Plan::read_features(float* features) const { read(network_.network.layers.back().input, features); }

int Plan::output_channels() const { return planes_[network_.network.output].channels; }

int Plan::feature_channels() const {
  const Plane& plane = planes_[network_.network.layers.back().input];
  return plane.height == 1 && plane.width == 1 && network_.network.layers.size() > 1 ? plane.channels : 0;
}

// Only for values of one pixel per image.
void Plan::read(int value, float* to) const {
  const Plane& plane = planes_[value];
  const bool narrow = network_.kernels->bfloat16 && !plane.floats;
  const int line_channels = narrow ? 32 : 16;
  for (int image = 0; image < batch_; ++image)
    for (int channel = 0; channel < plane.channels; ++channel) {
      const char* line = at(plane, image) + channel / line_channels * plane.block_step;
      std::uint32_t bits = 0;
      if (narrow)
        std::memcpy(reinterpret_cast<char*>(&bits) + 2, line + channel % line_channels * 2, 2);
      else
        std::memcpy(&bits, line + channel % line_channels * 4, 4);
      std::memcpy(to + static_cast<std::ptrdiff_t>(image) * plane.channels + channel, &bits, sizeof bits);
    }
}

// This chunk's share of the border of what the step makes: nobody reads it before all chunks are done.
void Plan::clear_border(const Step& step, int image, int chunk) const {
  const Plane& plane = planes_[network_.network.layers[step.layer].output];
  if (plane.pad == 0 || !plane.shares) return;
  const int parts = plane.blocks * step.images;
  const std::ptrdiff_t side = 2 * plane.pad * line_bytes;
  for (int part = parts * chunk / step.chunks; part < parts * (chunk + 1) / step.chunks; ++part) {
    char* corner = at(plane, image) - plane.interior() + part / step.images * plane.block_step +
                   part % step.images * plane.image_step;
    // The right border of a row and the left one of the next lie side by side.
    std::memset(corner, 0, plane.pad * plane.pitch + side / 2);
    for (int y = 0; y + 1 < plane.height; ++y)
      std::memset(corner + (plane.pad + y + 1) * plane.pitch - side / 2, 0, side);
    char* last = corner + (plane.pad + plane.height) * plane.pitch - side / 2;
    std::memset(last, 0, plane.pad * plane.pitch + side / 2);
  }
}

void Plan::run_chunk(const Step& step, const Task& task, int chunk, const float* input) const {
  if (step.layer >= 0) clear_border(step, task.image, chunk);
  switch (step.kind) {
    case Step::Kind::interleave: return run_interleave(step, task.image, chunk, input);
    case Step::Kind::tiles: return run_tiles(step, task.image, chunk);
    case Step::Kind::grouped_rows: return run_grouped_rows(step, task.image, chunk);
    case Step::Kind::pool: return run_pool(step, task.image, chunk);
  }
}

}  // namespace swsl::cpu
