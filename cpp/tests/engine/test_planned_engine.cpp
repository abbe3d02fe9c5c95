// The planned CPU engine behind the Engine interface: when it is taken, what it says, and that callers do not
// disturb each other. Its kernels and plans are tested in test_cpu_engine.cpp, its answers in
// test_engine.cpp.
#include <cstdlib>
#include <filesystem>
#include <thread>

#include <unistd.h>

#include <ATen/ATen.h>

#include "check.h"
#include "engine/kernels/kernels.h"
#include "test_data.h"

#include <swsl/engine.h>

using swsl::make_engine;

namespace {

const swsl::FrozenModel& model() {
  static const auto loaded = swsl::FrozenModel::load(data("tiny.pt"));
  return loaded;
}

at::Tensor batch(std::int64_t count) { return swsl::golden_input({count, 3, 64, 64}) / 2; }

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST(it_is_taken_where_the_processor_can) {
  const auto engine = make_engine(model());
  const auto* kernels = swsl::cpu::float32_kernels();
  CHECK_EQ(engine->info().name, kernels ? "planned" : "torchscript");
  CHECK(contains(engine->info().reason, kernels ? swsl::cpu::name(kernels->isa) : "AVX2"));
  const auto narrow = make_engine(model(), {.dtype = at::kBFloat16});
  CHECK_EQ(narrow->info().name, swsl::cpu::bfloat16_kernels() ? "planned" : "torchscript");
  const auto half = make_engine(model(), {.dtype = at::kHalf});
  CHECK_EQ(half->info().name, "torchscript");
  CHECK(contains(half->info().reason, "float32 and bfloat16 only"));
}

TEST(an_operator_it_does_not_know_is_named) {
  const auto other = swsl::FrozenModel::load(data("silu.pt"));
  const auto engine = make_engine(other);
  CHECK_EQ(engine->info().name, "torchscript");
  if (swsl::cpu::float32_kernels()) CHECK(contains(engine->info().reason, "has no aten::silu"));
  CHECK(error_of(*engine, other, batch(2)) <= 1e-5);
}

TEST(the_answers_do_not_depend_on_the_batch) {
  const auto engine = make_engine(model(), {.max_batch = 16});
  const auto input = batch(13);
  const auto together = engine->forward(input);
  for (int i = 0; i < 13; ++i)
    CHECK(swsl::relative_error(together.narrow(0, i, 1), engine->forward(input.narrow(0, i, 1))) <= 1e-6);
}

TEST(callers_and_engines_do_not_disturb_each_other) {
  const auto one = make_engine(model(), {.threads = 2}), two = make_engine(model(), {.threads = 3});
  const auto input = batch(3);
  const auto expected = one->forward(input);
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&, caller] {
      for (int run = 0; run < 10; ++run)
        if (!at::equal((caller % 2 ? *one : *two).forward(input), expected)) ++wrong;
    });
  for (auto& caller : callers) caller.join();
  CHECK_EQ(wrong.load(), 0);
}

TEST(the_profile_covers_the_network) {
  const auto engine = make_engine(model(), {.max_batch = 2});
  const auto layers = engine->profile(batch(2));
  if (engine->info().name != "planned") {
    CHECK(layers.empty());
    return;
  }
  // The stem, four bottlenecks of three convolutions and a shortcut each, the classifier; two pools and the
  // input's step.
  CHECK_EQ(layers.size(), std::size_t{1 + 4 * 4 + 1 + 2 + 1});
  const double stem = 2.0 * 64 * 32 * 32 * 3 * 7 * 7;
  CHECK_EQ(layers[1].multiply_adds, stem);
  for (const auto& layer : layers) CHECK(layer.seconds > 0 && !layer.kernel.empty() && !layer.shape.empty());
  CHECK_THROWS(std::invalid_argument, "at most 2 images to profile", engine->profile(batch(3)));
}

TEST(the_choice_of_a_dtype_is_remembered) {
  const auto folder = std::filesystem::temp_directory_path() / ("swsl-test-" + std::to_string(getpid()));
  setenv("XDG_CACHE_HOME", folder.c_str(), 1);
  const auto measured = make_engine(model(), {.dtype = swsl::parse_dtype("auto")});
  CHECK(contains(measured->info().reason, "an image takes"));
  const auto known = make_engine(model(), {.dtype = swsl::parse_dtype("auto")});
  CHECK(contains(known->info().reason, "when first measured here"));
  CHECK_EQ(known->info().dtype, measured->info().dtype);
  CHECK(at::equal(known->forward(batch(1)), measured->forward(batch(1))));
  std::filesystem::remove_all(folder);
  CHECK_THROWS(std::invalid_argument, "dtype: expected float32, bfloat16 or float16, got Double",
               swsl::peak_flops(at::kDouble, 1));
  CHECK_EQ(swsl::peak_flops(at::kFloat, 1) > 0, swsl::cpu::float32_kernels() != nullptr);
}
