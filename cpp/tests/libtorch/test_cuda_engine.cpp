// The CUDA engine's own sources on the CPU (see cuda_on_cpu/engine.h), beside LibTorch's answers.
#include "libtorch/cuda/engine/cuda_engine.h"

#include <thread>

#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>

#include "check.h"
#include "cuda_on_cpu/engine.h"
#include "libtorch/cuda/engine/graph.h"
#include "libtorch/cuda/own_stream.h"
#include "own_outputs.h"

using swsl::ElementType;

namespace {

struct Restored {
  ~Restored() {
    auto& state = cuda_on_cpu::state();
    state.most_values = INT64_MAX;
    state.can_capture = state.has_fused = true;
    state.fused_is_wrong = false;
  }
};

std::unique_ptr<swsl::Engine> make(const swsl::EngineOptions& options) {
  std::string why;
  auto engine = swsl::make_cuda_engine(tiny(), options, why);
  if (!engine) check::fail(__FILE__, __LINE__, why);
  CHECK_EQ(engine->info().name, "cuda");
  CHECK_EQ(engine->info().classes, 10);
  CHECK_EQ(engine->info().features, 2048);
  return engine;
}

at::Tensor batch(std::int64_t count, std::int64_t height = 64, std::int64_t width = 64) {
  const auto images = make_images(count, height, width);
  return at::tensor(images.numbers).view({count, 3, height, width});
}

bool says(const swsl::Engine& engine, const std::string& part) {
  return engine.info().reason.find(part) != std::string::npos;
}

double tolerance(ElementType dtype) { return dtype == ElementType::float32 ? 1e-5 : 1e-2; }

}  // namespace

TEST(any_batch_in_any_number_format_gives_the_modules_answers) {
  auto& state = cuda_on_cpu::state();
  for (const auto dtype : {ElementType::float32, ElementType::float16, ElementType::bfloat16}) {
    {
      const auto engine = make({.device = "cpu", .dtype = dtype, .max_batch = 4});
      CHECK(says(*engine, "a CUDA graph for each batch size") && !says(*engine, "without") &&
            !says(*engine, "computed something else"));
      const int before = state.replays;
      for (int again = 0; again < 2; ++again)  // what comes for the second time gets a graph of its own
        for (const int count : {1, 3, 4, 7})
          CHECK(error_of(*engine, tiny(), batch(count)) <= tolerance(dtype));
      CHECK(state.replays > before);
      CHECK(error_of(*engine, tiny(), batch(2, 40, 33)) <= tolerance(dtype));
      CHECK(swsl::libtorch::forward(*engine, batch(0)).sizes() == at::IntArrayRef({0, 10}));
    }
    CHECK_EQ(state.pools.load(), 0);  // whoever keeps one never gives its memory back
  }
}

TEST(maps_of_one_pixel_and_views) {
  const auto engine = make({.device = "cpu", .dtype = ElementType::float16, .max_batch = 2});
  for (const auto& [height, width] : {std::pair{32, 32}, {1, 1}, {33, 65}, {32, 64}})
    for (int again = 0; again < 2; ++again) CHECK(error_of(*engine, tiny(), batch(1, height, width)) <= 1e-2);
  CHECK(error_of(*engine, tiny(), batch(4).slice(0, 1, 3)) <= 1e-2);
  CHECK(error_of(*engine, tiny(), batch(2).contiguous(at::MemoryFormat::ChannelsLast)) <= 1e-2);
}

TEST(each_layer_tells_its_ways) {
  const auto engine = make({.device = "cpu", .dtype = ElementType::float16, .max_batch = 2});
  const auto layers = engine->profile(make_images(2).batch);
  int convolutions = 0, ours = 0;
  for (const auto& layer : layers) {
    CHECK(layer.seconds > 0 && layer.ways.empty() == (layer.multiply_adds == 0));
    convolutions += layer.multiply_adds > 0;
    double best = 1e9;
    std::string chosen;
    for (const auto& way : layer.ways) {
      CHECK(way.trouble.empty() && way.seconds > 0);
      ours += way.kernel.starts_with("grouped");
      if (way.seconds < best) {
        best = way.seconds;
        chosen = way.kernel;
      }
    }
    if (!layer.ways.empty()) CHECK_EQ(layer.kernel, chosen);
  }
  CHECK_EQ(convolutions, 18);  // the stem, four blocks with a shortcut each, the classifier
  CHECK_EQ(ours, 2 * 3);       // the groups of the fourth block are too wide
}

TEST(a_way_that_fails_or_is_wrong_is_out_and_named) {
  const Restored restored;
  const auto trouble_of = [](const swsl::EngineOptions& options, const std::string& kernel) {
    std::string trouble;
    for (const auto& layer : make(options)->profile(make_images(1).batch))
      for (const auto& way : layer.ways)
        if (way.kernel == kernel) {
          CHECK_EQ(way.seconds, 0);
          trouble = way.trouble;
          CHECK(layer.kernel != kernel);
        }
    return trouble;
  };
  const swsl::EngineOptions options{.device = "cpu", .dtype = ElementType::float16, .max_batch = 1};
  cuda_on_cpu::state().has_fused = false;
  CHECK_EQ(trouble_of(options, "cuDNN fused"), "no engine of cuDNN for this");
  CHECK(!says(*make(options), "cuDNN fused"));
  cuda_on_cpu::state().has_fused = true;
  cuda_on_cpu::state().fused_is_wrong = true;
  CHECK_EQ(trouble_of(options, "cuDNN fused"), "computed something else");
  CHECK(says(*make(options), "; cuDNN fused computed something else and is out"));
}

TEST(what_cannot_be_captured_runs_without_graphs) {
  const Restored restored;
  cuda_on_cpu::state().can_capture = false;
  const auto engine = make({.device = "cpu", .dtype = ElementType::float16, .max_batch = 2});
  CHECK(says(*engine, "; without CUDA graphs: CUDA: operation not permitted"));
  for (const int count : {1, 2, 5}) CHECK(error_of(*engine, tiny(), batch(count)) <= 1e-2);
  CHECK_EQ(cuda_on_cpu::state().pools.load(), 0);
}

TEST(batches_that_do_not_fit_are_cut) {
  const Restored restored;
  auto& most = cuda_on_cpu::state().most_values;
  const std::int64_t of_one_image = 64 * 32 * 32;  // the stem's, the largest
  {
    most = 3 * of_one_image;
    const auto engine = make({.device = "cpu", .dtype = ElementType::float16, .max_batch = 8});
    CHECK(says(*engine, "batches are cut into parts of 2, for 8 images do not fit"));
    CHECK(error_of(*engine, tiny(), batch(7)) <= 1e-2);
    most = of_one_image;  // others have taken the rest
    for (int again = 0; again < 2; ++again) CHECK(error_of(*engine, tiny(), batch(7, 64, 62)) <= 1e-2);
    CHECK_THROWS(std::runtime_error, "out of memory on cpu: not even one image of 96 × 96",
                 swsl::libtorch::forward(*engine, batch(1, 96, 96)));
    CHECK_THROWS(std::runtime_error, "out of memory on cpu for a batch of 1 images",
                 engine->profile(make_images(1, 96, 96).batch));
    most = INT64_MAX;
    CHECK(error_of(*engine, tiny(), batch(7)) <= 1e-2);
  }
  CHECK_EQ(cuda_on_cpu::state().pools.load(), 0);
  most = of_one_image - 1;
  std::string why;
  CHECK_THROWS(
      std::runtime_error, "out of memory on cpu",
      swsl::make_cuda_engine(tiny(), {.device = "cpu", .dtype = ElementType::float16, .max_batch = 2}, why));
  CHECK_EQ(cuda_on_cpu::state().pools.load(), 0);
}

TEST(a_forward_pass_is_no_part_of_a_callers_graph) {
  const auto engine = make({.device = "cpu", .dtype = ElementType::float16, .max_batch = 1});
  const auto input = batch(1);
  const swsl::OwnStream own(at::Device(at::kCPU));
  const c10::cuda::CUDAStreamGuard guard(own.get());
  CHECK_THROWS(std::runtime_error, "is being captured on the caller's stream",
               swsl::cuda::Graph({}, [&] { swsl::libtorch::forward(*engine, input); }));
  CHECK(error_of(*engine, tiny(), input) <= 1e-2);
}

TEST(threads_share_two_lanes_in_modes_of_their_own) {
  const auto engine = make({.device = "cpu", .dtype = ElementType::float16, .max_batch = 2});
  CHECK_EQ(engine->info().at_once, 2);
  std::vector<std::thread> threads;
  std::vector<double> errors(4, 1);
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      double largest = 0;
      for (const int count : {1 + i, 2, 3}) {
        const auto input = batch(count, 64, 64 - i);
        largest =
            std::max(largest, error_of(*engine, tiny(), i % 2 ? at::Tensor(input).requires_grad_() : input));
      }
      errors[static_cast<std::size_t>(i)] = largest;
    });
  for (auto& thread : threads) thread.join();
  for (const double error : errors) CHECK(error <= 1e-2);
}
