// Every kernel, packing and layout of the CPU engine against the nested loops of reference.cpp, over random
// shapes: the same for every instruction set, on every machine.
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <string_view>

#include "check.h"
#include "engine/bfloat16.h"
#include "engine/plan/pack.h"
#include "engine/plan/plan.h"
#include "engine/plan/reference.h"
#include "engine/tile_twin.h"
#include "threads/thread_pool.h"

using namespace swsl;
using namespace swsl::cpu;

namespace {

std::mt19937 random_engine;

int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_engine); }

// Values that bfloat16 holds exactly: whatever differs then is the sums, not the inputs.
float value() { return from_bfloat16(to_bfloat16(std::normal_distribution<float>()(random_engine))); }

std::shared_ptr<const float> random_floats(std::size_t count, float scale) {
  std::shared_ptr<float> values(new float[count], std::default_delete<float[]>());
  for (std::size_t i = 0; i < count; ++i) values.get()[i] = from_bfloat16(to_bfloat16(value() * scale));
  return values;
}

struct Builder {
  Network network;
  std::vector<int> channels;

  explicit Builder(int input_channels) {
    network.values = 1;
    channels = {input_channels};
  }
  int add(Node node, int output_channels) {
    node.output = network.values++;
    node.name = "node " + std::to_string(network.nodes.size());
    network.nodes.push_back(node);
    channels.push_back(output_channels);
    network.features = node.inputs[0];  // of the last one
    return network.output = node.output;
  }
  int convolution(int input, int out, Window window, int groups = 1, bool bias = true,
                  Operation operation = Operation::convolution) {
    Node node{};
    node.operation = operation;
    node.inputs = {input};
    node.window = window;
    node.groups = groups;
    node.in_channels = channels[input];
    node.out_channels = out;
    const int sum = channels[input] / groups * window.kernel_height * window.kernel_width;
    node.weights = random_floats(static_cast<std::size_t>(out) * sum, 1 / std::sqrt(static_cast<float>(sum)));
    if (bias) node.bias = random_floats(out, 1);
    return add(node, out);
  }
  int simple(Operation operation, std::vector<int> inputs, Window window = {}) {
    Node node{};
    node.operation = operation;
    node.inputs = inputs;
    node.window = window;
    return add(node, channels[inputs[0]]);
  }
  // Pools and a linear layer, so that the output is a vector per image.
  void finish(int input, int classes) {
    const int pooled = simple(Operation::global_average_pool, {input});
    const int flat = simple(Operation::flatten, {pooled});
    convolution(flat, classes, {}, 1, true, Operation::linear);
  }
};

Window window(int kernel, int stride, int pad, int dilation = 1) {
  return {kernel, kernel, stride, stride, pad, pad, dilation, dilation};
}

struct Expected {
  Array features, logits;
};

// Computed once for all kernels of a type, which get the same networks, each with an input of its own.
const Expected& expect(const Network& network, const Array& input, bool bfloat16) {
  static std::map<std::pair<bool, std::size_t>, Expected> known;
  const std::string_view bytes(reinterpret_cast<const char*>(input.values.data()),
                               input.values.size() * sizeof(float));
  const auto [place, added] = known.try_emplace({bfloat16, std::hash<std::string_view>()(bytes)});
  if (added) {
    auto values = run_reference(network, input, bfloat16);
    place->second = {std::move(values.at(network.features)), std::move(values.at(network.output))};
  }
  return place->second;
}

double norm(const float* values, int count) {
  double squares = 0;
  for (int i = 0; i < count; ++i) squares += double{values[i]} * values[i];
  return std::sqrt(squares);
}

// Of the size of the sums that made them, as golden.h has it: logits that happen to cancel say nothing.
double logits_error(const Node& linear, const std::vector<float>& actual, const Expected& expected) {
  double error = 0;
  for (int n = 0; n < expected.logits.images; ++n) {
    const double size = norm(&expected.features.values[n * linear.in_channels], linear.in_channels);
    for (int c = 0; c < linear.out_channels; ++c) {
      const std::size_t at = n * linear.out_channels + c;
      const double scale = norm(linear.weights.get() + c * linear.in_channels, linear.in_channels) * size +
                           std::abs(linear.bias.get()[c]);
      const double part = std::abs(double{actual[at]} - expected.logits.values[at]) / scale;
      if (!(part <= error)) error = part;  // NaN stays
    }
  }
  return error;
}

void check_network(const Network& network, const KernelSet& kernels, int batch, int channels, int height,
                   int width, int thread_count) {
  ThreadPool threads(thread_count);
  Array input{batch, channels, height, width, {}};
  for (int i = 0; i < batch * channels * height * width; ++i) input.values.push_back(value());
  const Expected& expected = expect(network, input, kernels.bfloat16);
  const PackedNetwork packed = pack(fuse(network), kernels, threads);
  Plan plan(packed, batch, height, width, thread_count);
  CHECK_EQ(plan.output_channels(), expected.logits.channels);
  Arena arena{allocate(plan.arena_bytes()), plan.arena_bytes(), nullptr};
  std::memset(arena.memory.get(), 0xff, arena.bytes);  // NaN, in both types
  std::vector<float> actual(expected.logits.values.size(), std::nanf(""));
  for (int run = 0; run < 2; ++run) {  // the second finds the arena used
    plan.run(input.values.data(), actual.data(), arena, threads);
    const double error = logits_error(network.nodes.back(), actual, expected);
    // Sums in another order, and in bfloat16 the odd activation that rounds the other way for it.
    const double tolerance = kernels.bfloat16 ? 5e-3 : 5e-6;
    if (!(error <= tolerance))
      check::fail(__FILE__, __LINE__, name(kernels.isa), " differs by ", error, " for batch ", batch, ", ",
                  channels, "×", height, "×", width);
  }
}

template <class Make>
void on_every_isa(Make make) {
  const auto check = [&](const KernelSet& kernels) {
    random_engine.seed(20240607);
    make(kernels);
  };
  const char* only = std::getenv("SWSL_TEST_ISA");  // under an emulator, all of them take long
  for (const cpu::Isa isa : {cpu::Isa::portable, cpu::Isa::neon, cpu::Isa::avx2, cpu::Isa::avx512,
                             cpu::Isa::avx512bf16, cpu::Isa::amx})
    for (const bool bfloat16 : {false, true})
      if (const KernelSet* found = kernels(isa, bfloat16);
          found && (!only || cpu::name(isa) == std::string(only)))
        check(*found);
  if (!only) check(twin_kernels());
  CHECK_EQ(TileTwin::threads_configured.load(), 0);
}

}  // namespace

TEST(one_convolution_of_every_shape) {
  on_every_isa([](const KernelSet& kernels) {
    for (int trial = 0; trial < 150; ++trial) {
      const int in = pick(1, 70), out = pick(1, 90),
                kernel = pick(0, 2) == 0 ? pick(1, 5) : pick(0, 1) * 2 + 1;
      const int stride = pick(1, 3), pad = pick(0, kernel / 2), dilation = pick(1, 2);
      Builder net(pick(1, 5));
      const int input_channels = net.channels[0];
      const int x = net.convolution(0, in, window(pick(1, 4), pick(1, 2), 0));
      const int y = net.convolution(x, out, window(kernel, stride, pad, dilation), 1, pick(0, 1) == 1);
      net.finish(y, pick(1, 40));
      const int size = 2 * kernel * dilation + 6;
      check_network(net.network, kernels, pick(1, 3), input_channels, pick(size, size + 40),
                    pick(size, size + 40), pick(1, 3));
    }
  });
}

TEST(every_width_of_tile) {
  on_every_isa([](const KernelSet& kernels) {
    for (int width = 1; width <= 33; ++width)
      for (int kernel : {1, 3})
        for (int stride : {1, 2}) {
          Builder net(3);
          const int x = net.convolution(0, 32, window(1, 1, 0));
          net.finish(net.convolution(x, pick(1, 3) * 32, window(kernel, stride, kernel / 2)), 5);
          check_network(net.network, kernels, pick(1, 2), 3, pick(1, 5), width, 2);
        }
  });
}

TEST(grouped_convolutions_of_every_width) {
  on_every_isa([](const KernelSet& kernels) {
    for (int per_group : {1, 2, 3, 4, 8, 16, 24, 32, 64})
      for (int width : {1, 2, 7, 8, 13, 14, 15, 28, 29, 56, 57})
        for (int stride : {1, 2}) {
          const int groups = per_group >= 16 ? pick(2, 3) : pick(1, 3) * 32 / std::gcd(32, per_group);
          Builder net(3);
          const int x = net.convolution(0, per_group * groups, window(1, 1, 0));
          int y = net.convolution(x, per_group * groups, window(3, stride, 1), groups);
          if (pick(0, 1)) y = net.simple(Operation::relu, {y});
          net.finish(y, 5);
          check_network(net.network, kernels, pick(1, 2), 3, pick(1, 4), width, 2);
        }
  });
}

// A residual network in small: stem, max pool, bottlenecks with and without a shortcut convolution.
TEST(residual_networks) {
  on_every_isa([](const KernelSet& kernels) {
    for (int trial = 0; trial < 12; ++trial) {
      Builder net(3);
      int x = net.convolution(0, 32, window(7, 2, 3));
      x = net.simple(Operation::relu, {x});
      x = net.simple(Operation::max_pool, {x}, window(3, 2, 1));
      if (trial % 3 == 0) x = net.simple(Operation::average_pool, {x}, window(2, 1, 1));
      if (trial % 3 == 1) {
        Window pool = window(pick(2, 3), 2, pick(0, 1));
        pool.ceil_mode = true;
        x = net.simple(Operation::average_pool, {x}, pool);
      }
      for (int block = 0; block < 4; ++block) {
        const int stride = block == 2 ? 2 : 1, width = pick(1, 2) * 32,
                  out = block == 0 || block == 2 ? pick(1, 3) * 32 : net.channels[x];
        int y = net.simple(Operation::relu, {net.convolution(x, width, window(1, 1, 0))});
        y = net.simple(Operation::relu,
                       {net.convolution(y, width, window(3, stride, 1), pick(0, 1) ? 8 : 1)});
        y = net.convolution(y, out, window(1, 1, 0));
        const bool shortcut = stride != 1 || out != net.channels[x];
        const int identity = shortcut ? net.convolution(x, out, window(1, stride, 0)) : x;
        x = net.simple(Operation::relu, {net.simple(Operation::add, {y, identity})});
      }
      net.finish(x, pick(1, 50));
      check_network(net.network, kernels, pick(1, 6), 3, pick(17, 90), pick(17, 90), pick(1, 3));
    }
  });
}

TEST(what_cannot_be_fused_is_named) {
  Builder twice(3);
  const int x = twice.convolution(0, 8, {});
  const int y = twice.simple(Operation::relu, {x});
  twice.simple(Operation::add, {x, y});
  CHECK_THROWS(UnsupportedNetwork, "node 1", fuse(twice.network));

  Builder unknown(3);
  unknown.simple(Operation::other, {unknown.convolution(0, 8, {})});
  CHECK_THROWS(UnsupportedNetwork, "node 1", fuse(unknown.network));

  Builder elsewhere(3);
  elsewhere.finish(elsewhere.convolution(0, 8, {}), 4);
  elsewhere.network.features = 0;
  CHECK_THROWS(UnsupportedNetwork, "other values than the features", fuse(elsewhere.network));

  Builder unflattened(3);
  const int c = unflattened.convolution(0, 8, {});
  unflattened.convolution(c, 4, {}, 1, true, Operation::linear);
  CHECK_THROWS(UnsupportedNetwork, "not flattened", fuse(unflattened.network));
}

TEST(an_image_too_small_is_refused) {
  const KernelSet* kernels = &best_kernels(false);
  Builder net(3);
  net.finish(net.convolution(0, 8, window(7, 1, 0)), 2);
  ThreadPool threads(1);
  const PackedNetwork packed = pack(fuse(net.network), *kernels, threads);
  CHECK_THROWS(UnsupportedNetwork, "larger image than 6×9", Plan(packed, 1, 6, 9, 1));
}
