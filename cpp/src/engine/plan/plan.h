// A packed network laid out for one shape of batch: where every activation lives, which tiles cover it, how
// the work is split over threads. Running it allocates nothing.
//
// Images go through the early layers in small groups, so that activations stay in the caches, and through the
// late ones together, so that each weight is fetched once: the plan is a list of segments, each with its own
// group size.
//
// Plans of several shapes take turns with one arena: one run at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include <swsl/layer_time.h>

#include "engine/plan/pack.h"

namespace swsl::cpu {

class ThreadPool;

// The activations of one value: [channel block][image][row][column] lines with a border of zeros, if padded.
struct Plane {
  int channels = 0, height = 0, width = 0;
  int pad = 0;
  bool floats = false;  // float32 lines of 16 channels whatever the type of the network
  bool whole_batch = false;
  int images = 0;           // that it has room for
  int first = 0, last = 0;  // layers between which it is needed
  int blocks = 0;
  std::ptrdiff_t column_bytes = line_bytes, pitch = 0, image_step = 0, block_step = 0;
  std::size_t bytes = 0, offset = 0;
  bool shares = false;  // its place with other planes

  std::ptrdiff_t interior() const { return pad * (pitch + column_bytes); }
};

class Plan;

// The memory of all activations.
struct Arena {
  Memory memory;
  std::size_t bytes = 0;
  const Plan* prepared_for = nullptr;
};

class Plan {
 public:
  struct Step;

  // Throws UnsupportedNetwork when the shape does not fit the network.
  Plan(const PackedNetwork& network, int batch, int height, int width, int threads);
  ~Plan();
  Plan(const Plan&) = delete;

  // input: batch×C×H×W; output: batch×classes. `times`, if given, receives one entry per layer.
  // The arena grows to what is needed; the pool must have the number of threads given above.
  void run(const float* input, float* output, Arena& arena, ThreadPool& threads,
           std::vector<LayerTime>* times = nullptr);
  // The same, stopping at the value that feeds the last layer: batch×features.
  void run_features(const float* input, float* features, Arena& arena, ThreadPool& threads);
  // That value of the run just made, by either.
  void read_features(float* features) const;

  int batch() const { return batch_; }
  int height() const { return height_; }
  int width() const { return width_; }
  int output_channels() const;
  int feature_channels() const;  // 0 where the last layer is not fed by a vector per image
  std::size_t arena_bytes() const { return arena_bytes_; }

 private:
  struct Task {
    int step;
    int image;  // the first of the segment's group
  };
  struct alignas(64) Queue {
    std::atomic<std::uint64_t> range{0};
  };

  void lay_out(int threads);
  void place_planes();
  void build_convolution(Step& step, int images, int threads);
  void prepare(Arena& arena);
  void execute(int last_layer, const float* input, ThreadPool& threads, std::vector<LayerTime>* times);
  void clear_border(const Step& step, int image, int chunk) const;
  void run_chunk(const Step& step, const Task& task, int chunk, const float* input) const;
  void run_tiles(const Step& step, int image, int chunk) const;
  void run_grouped_rows(const Step& step, int image, int chunk) const;
  void run_pool(const Step& step, int image, int chunk) const;
  void run_interleave(const Step& step, int image, int chunk, const float* input) const;
  void read(int value, float* to) const;
  char* at(const Plane& plane, int image) const;

  const PackedNetwork& network_;
  int batch_, height_, width_, channels_;
  std::vector<Plane> planes_;                 // by value; the network's input is its interleaved copy
  std::vector<int> group_;                    // images per run of each layer
  std::vector<std::unique_ptr<Step>> steps_;  // the interleaving, then one per layer
  std::vector<Task> tasks_;
  std::vector<Queue> queues_;  // [task][thread]
  char* arena_ = nullptr;      // of the run under way
  std::size_t arena_bytes_ = 0;
  std::size_t overrun_ = 0;  // how far the last matrix tile may read beyond its plane
};

}  // namespace swsl::cpu
